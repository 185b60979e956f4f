"""Fronts that parse HTTP, behind one small backend, and how each judges bytes.

    async with listener() as front:
        verdict = await front.verdict(data)

A front under test is an async context manager in `UNDER_TEST`; a data plane of another make is
held to the same by adding it there. `reference` is aiohttp's own server as it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from aiohttp import web

from spotinference.gateway import listener as gateway_listener
from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.errors import GatewayError
from spotinference.gateway.listener import Listener
from tests.support import raw_http
from tests.support.raw_http import Address

SETTLED_TURNS = 40
"""Of the loop without a byte: the front and its handler live on it, so nothing is under way."""
READ_BYTES = 65536
SENTINEL_HOST = "sentinel"

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Seen = tuple[str, str, bytes]
"""Method, target as it came, body."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a front judges bytes: fronts with equal verdicts are equally strict."""

    statuses: tuple[int, ...]
    end: Literal["closed", "open", "waiting"]
    """open: it took the next request for one; waiting: it wants more bytes of this one"""
    seen: tuple[Seen, ...]
    """the requests that reached the backend whole, in order"""


@dataclass(slots=True)
class Front:
    address: Address
    seen: list[Seen] = field(default_factory=list)
    any_version: bool = False
    """It may answer in the version of HTTP it was asked in, whatever that is."""

    async def verdict(self, data: bytes, pieces: Sequence[int] = ()) -> Verdict:
        self.seen.clear()
        raw, closed = await self._talk(data + raw_http.SENTINEL, pieces)
        answers = raw_http.parse(raw, any_version=self.any_version)
        statuses = [answer.status for answer in answers if answer.status >= 200]
        answered = statuses[-1:] == [raw_http.SENTINEL_STATUS]
        return Verdict(
            tuple(statuses[:-1] if answered else statuses),
            "open" if answered else "closed" if closed else "waiting",
            tuple(self.seen),
        )

    async def _talk(self, data: bytes, pieces: Sequence[int]) -> tuple[bytes, bool]:
        """What came until nothing more does; whether the front hung up."""
        received = bytearray()
        with socket.socket() as client:
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, self.address)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for start, end in pairwise((0, *pieces, len(data))):
                with contextlib.suppress(ConnectionError):
                    client.send(data[start:end])
                for _ in range(raw_http.TURNS):
                    await asyncio.sleep(0)
            still = 0
            while still < SETTLED_TURNS:
                try:
                    part = client.recv(READ_BYTES)
                except BlockingIOError:
                    still += 1
                    await asyncio.sleep(0)
                    continue
                except ConnectionError:
                    return bytes(received), True
                if not part:
                    return bytes(received), True
                received += part
                still = 0
        return bytes(received), False


@asynccontextmanager
async def _serving(
    make: Callable[[Handler], web.Server],
    check: Callable[[web.BaseRequest], None],
    *,
    any_version: bool = False,
) -> AsyncIterator[Front]:
    seen: list[Seen] = []

    async def handle(http: web.BaseRequest) -> web.StreamResponse:
        """The backend."""
        try:
            check(http)
            body = await http.read()
        except GatewayError as error:
            response = web.Response(status=error.status)
            response.force_close()
            return response
        except web.RequestPayloadError:
            response = web.Response(status=400)
            response.force_close()
            return response
        if http.headers.get("Host") == SENTINEL_HOST:
            return web.Response(status=raw_http.SENTINEL_STATUS)
        seen.append((http.method, http.raw_path, body))
        # The bytes alone do not say which answer is one to HEAD or CONNECT, whose ends are their own.
        status = {"HEAD": 204, "CONNECT": 404}.get(http.method, 200)
        return (
            web.Response(status=status) if status == 204 else web.Response(status=status, text="-")
        )

    runner = web.ServerRunner(make(handle), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield Front(runner.addresses[0][:2], seen, any_version)
    finally:
        await runner.cleanup()


def reference() -> AbstractAsyncContextManager[Front]:
    """aiohttp's server and parser, with the gateway's bounds and nothing else of ours."""
    bounds = GatewaySettings()
    return _serving(
        lambda handle: web.Server(
            handle,
            access_log=None,
            max_line_size=bounds.max_line_bytes,
            max_field_size=bounds.max_header_bytes,
            max_headers=bounds.max_headers,
            auto_decompress=False,
        ),
        lambda _: None,
        any_version=True,
    )


def listener() -> AbstractAsyncContextManager[Front]:
    """The gateway's."""
    return _serving(lambda handle: Listener(handle, GatewaySettings()), gateway_listener.check)


UNDER_TEST: Mapping[str, Callable[[], AbstractAsyncContextManager[Front]]] = {"listener": listener}
