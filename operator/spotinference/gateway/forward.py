"""Sends a request to the gateway replica that keeps its recording: found by hashing, no store.

Once and no further: a forwarded request is answered where it arrives. A peer that cannot be reached
keeps nothing, so the request is answered here.
"""

from __future__ import annotations

import asyncio
import secrets

import aiohttp
import structlog
from aiohttp import web

from spotinference.core import ring
from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.peers import Peers
from spotinference.gateway.replay import EVENT_IDS, IDEMPOTENCY_KEY, LAST_EVENT_ID, Asked
from spotinference.gateway.reply import cut

log = structlog.get_logger(__name__)

FORWARDED = "x-spotinference-forwarded"
_PASSED_ON = (
    "Authorization", "Content-Type", IDEMPOTENCY_KEY, EVENT_IDS, LAST_EVENT_ID, "x-session-id",
)  # fmt: skip
_OWN_TO_A_CONNECTION = {"connection", "transfer-encoding", "content-length", "date", "server"}
ID_TRIES = 64
"""Ids that are tried until one belongs to this replica: enough for dozens of replicas."""


class Forward:
    def __init__(self, settings: GatewaySettings, peers: Peers) -> None:
        self._settings = settings
        self._peers = peers
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def own_id(self, first: str) -> str:
        """A request id that leads back to this replica, so that its stream can be resumed."""
        name = first
        for _ in range(ID_TRIES):
            if self._elsewhere(name) is None:
                return name
            name = secrets.token_hex(len(first) // 2)
        return first

    def peer_for(self, http: web.BaseRequest, owner: str, wanted: Asked) -> str | None:
        """Base URL of the replica that keeps it; None: this one, or it was forwarded already."""
        if FORWARDED in http.headers:
            return None
        if wanted.last is not None:
            return self._elsewhere(wanted.last[0])
        if wanted.idempotency is not None:
            return self._elsewhere(f"{owner}\n{wanted.idempotency}")
        return None

    def _elsewhere(self, name: str) -> str | None:
        addresses = self._peers.addresses
        if len(addresses) < 2 or self._peers.own not in addresses:
            return None
        if self._settings.workers > 1:  # a pod's port leads to any of its processes
            return None
        peer = ring.owner(name, addresses)
        return None if peer is None or peer == self._peers.own else addresses[peer]

    async def ask(
        self, http: web.BaseRequest, base_url: str, raw: bytes
    ) -> web.StreamResponse | None:
        """The peer's answer, byte for byte; None when it cannot be reached."""
        headers = {name: http.headers[name] for name in _PASSED_ON if name in http.headers}
        timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=self._settings.connect_timeout_s,
            sock_read=self._settings.forward_silence_s,
        )
        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        try:
            answer = await self._session.post(
                base_url + http.raw_path, data=raw, headers={**headers, FORWARDED: "1"},
                timeout=timeout, allow_redirects=False,
            )  # fmt: skip
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            log.warning("forward.unreachable", peer=base_url, error=str(error)[:200])
            return None
        async with answer:
            return await self._relay(http, answer)

    async def _relay(
        self, http: web.BaseRequest, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            status=answer.status,
            headers={
                name: value
                for name, value in answer.headers.items()
                if name.lower() not in _OWN_TO_A_CONNECTION
            },
        )
        await response.prepare(http)
        try:
            async for data in answer.content.iter_any():
                async with asyncio.timeout(self._settings.client_write_timeout_s):
                    await response.write(data)
            await response.write_eof()
        except (aiohttp.ClientError, OSError, TimeoutError):
            # Cut here as it was cut there: no client may take it for an end.
            cut(http)
        return response
