"""Clients that take nothing hold nothing for long, whatever they asked and whoever they are."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing

import pytest
from aiohttp import web

from spotinference.gateway.connection import Connection
from spotinference.gateway.messages import Request
from tests.gateway.raw_table import head, post
from tests.gateway.test_hostile_http import address
from tests.support.eventually import eventually
from tests.support.gateway import Bench, bench

BATCH = 50


@asynccontextmanager
async def deaf(b: Bench, request: bytes) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A client that reads nothing; what is given asks some more, until the gateway is stuck."""
    loop = asyncio.get_running_loop()
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, address(b))
        await eventually(lambda: b.gateway.front.count == 1, 5)

        async def ask() -> None:
            await loop.sock_sendall(client, request * BATCH)

        yield ask


def unsent(b: Bench) -> int:
    found = [connection.transport for connection in b.gateway.front.connections]
    return sum(transport.get_write_buffer_size() for transport in found if transport is not None)


REQUESTS = {
    "a-stranger": post(key=None, content=b"{}"),
    "a-client": head(target="/v1/models", method="GET"),
}


@pytest.mark.fault(59)
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
async def test_who_asks_on_and_never_reads_is_let_go(request_: bytes) -> None:
    async with bench(client_write_timeout_s=0.5) as b:
        await b.tier("demo")
        async with deaf(b, request_) as ask:

            async def asking() -> None:
                with contextlib.suppress(ConnectionError):
                    while True:
                        await ask()

            forever = asyncio.create_task(asking())
            await eventually(lambda: unsent(b) > 0, 20, "the kernel takes no more")
            try:
                await eventually(lambda: b.gateway.front.count == 0, 5, "let go")
            finally:
                forever.cancel()
                await asyncio.wait([forever])


@pytest.mark.fault(59)
async def test_what_nobody_reads_does_not_hold_an_idle_connection() -> None:
    async with bench(client_write_timeout_s=0.5, idle_timeout_s=1.0) as b:
        await b.tier("demo")
        front, asked = b.gateway.front, 0
        handle = front.handle

        async def counting(http: Request) -> web.StreamResponse:
            nonlocal asked
            asked += 1
            return await handle(http)

        front.handle = counting
        async with deaf(b, REQUESTS["a-client"]) as ask:
            (connection,) = front.connections
            assert isinstance(connection, Connection)
            sent = 0
            while not unsent(b):
                sent += BATCH
                await ask()
                await eventually(lambda: asked == sent and connection._task_handler is None, 5)  # noqa: B023 - awaited here
            await eventually(lambda: front.count == 0, 5, "let go")
