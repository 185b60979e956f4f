"""Sends a request to the gateway process that keeps its recording: found by hashing, no store.

First to the replica whose it is, over its port, where any of its workers may get it; then to the
worker whose it is, over the socket that each worker has for the others of its pod. A peer that
cannot be reached keeps nothing, so the request is answered where it is.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from pathlib import Path

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
TO_REPLICA, TO_WORKER = "replica", "worker"
"""How far it came: to a worker of the right replica, or to the process itself. Never back."""
_PASSED_ON = (
    "Authorization", "Content-Type", IDEMPOTENCY_KEY, EVENT_IDS, LAST_EVENT_ID, "x-session-id",
)  # fmt: skip
_OWN_TO_A_CONNECTION = {"connection", "transfer-encoding", "content-length", "date", "server"}
ID_TRIES = 1024
"""Ids that are tried until one belongs to this process: enough for a hundred of them."""


def door(folder: Path, worker: int) -> Path:
    """The socket on which a worker takes requests from the others of its pod."""
    return folder / f"door-{worker}"


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a request goes next."""

    step: str
    url: str
    socket: Path | None = None
    """of a worker of this pod; None: the URL says it all"""


class Forward:
    def __init__(self, settings: GatewaySettings, peers: Peers) -> None:
        self._settings = settings
        self._peers = peers
        self._sessions: dict[Path | None, aiohttp.ClientSession] = {}

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()

    def own_id(self, first: str) -> str:
        """A request id that leads back to this process, so that its stream can be resumed."""
        name = first
        for _ in range(ID_TRIES):
            if self._elsewhere(name) is None:
                return name
            name = secrets.token_hex(len(first) // 2)
        return first

    def peer_for(self, http: web.BaseRequest, owner: str, wanted: Asked) -> Peer | None:
        """Who keeps it, or knows who does; None: this process, or nobody else is to be asked."""
        came = http.headers.get(FORWARDED)
        if wanted.last is not None:
            return self._elsewhere(wanted.last[0], came)
        if wanted.idempotency is not None:
            return self._elsewhere(f"{owner}\n{wanted.idempotency}", came)
        return None

    def _elsewhere(self, name: str, came: str | None = None) -> Peer | None:
        if came is None and (replica := self._replica(name)) is not None:
            return replica
        return self._worker(name) if came != TO_WORKER else None

    def _replica(self, name: str) -> Peer | None:
        addresses = self._peers.addresses
        if len(addresses) < 2 or self._peers.own not in addresses:
            return None
        peer = ring.owner(name, addresses)
        if peer is None or peer == self._peers.own:
            return None
        return Peer(TO_REPLICA, addresses[peer])

    def _worker(self, name: str) -> Peer | None:
        settings = self._settings
        if settings.worker is None or settings.doors is None:
            return None
        keeper = int(ring.owner(name, map(str, range(settings.workers))) or 0)
        if keeper == settings.worker:
            return None
        return Peer(TO_WORKER, f"http://worker-{keeper}", door(settings.doors, keeper))

    async def ask(self, http: web.BaseRequest, peer: Peer, raw: bytes) -> web.StreamResponse | None:
        """The peer's answer, byte for byte; None when it cannot be reached."""
        headers = {name: http.headers[name] for name in _PASSED_ON if name in http.headers}
        timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=self._settings.connect_timeout_s,
            sock_read=self._settings.forward_silence_s,
        )
        try:
            answer = await self._session(peer).post(
                peer.url + http.raw_path, data=raw, headers={**headers, FORWARDED: peer.step},
                timeout=timeout, allow_redirects=False,
            )  # fmt: skip
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            log.warning("forward.unreachable", peer=peer.url, error=str(error)[:200])
            return None
        async with answer:
            return await self._relay(http, answer)

    def _session(self, peer: Peer) -> aiohttp.ClientSession:
        session = self._sessions.get(peer.socket)
        if session is None:
            session = self._sessions[peer.socket] = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(peer.socket), limit=0)
                if peer.socket is not None
                else aiohttp.TCPConnector(limit=0),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return session

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
            async with asyncio.timeout(self._settings.client_write_timeout_s):
                await response.write_eof()
        except (aiohttp.ClientError, OSError, TimeoutError):
            # Cut here as it was cut there: no client may take it for an end.
            cut(http)
        return response
