"""What goes to a client together: the head with the first chunk, the last event with the end."""

from __future__ import annotations

import asyncio
import socket

from aiohttp import web

from spotinference.core.chunks import DONE
from spotinference.gateway import errors
from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.listener import Listener
from spotinference.gateway.messages import Request
from spotinference.gateway.reply import Reply
from tests.gateway.test_turns import _client, _request
from tests.support.gateway import bench

END = DONE + b"\r\n0\r\n\r\n"


async def reads_of(client: socket.socket) -> list[bytes]:
    """What each read brings, up to the end of the answer."""
    client.setblocking(False)
    reads: list[bytes] = []
    async with asyncio.timeout(10):
        while not b"".join(reads).endswith(b"\r\n0\r\n\r\n"):
            reads.append(await asyncio.get_running_loop().sock_recv(client, 65536))
            assert reads[-1]
    return reads


async def test_the_head_comes_with_the_first_chunk_and_done_with_the_end_of_the_body() -> None:
    async with bench(tokens_per_s=20) as b:
        await b.tier("demo")
        await b.replica()
        with _client(b.url) as client:
            for _ in range(2):  # on one connection: the end is one
                client.sendall(_request())
                reads = await reads_of(client)
                assert reads[0].startswith(b"HTTP/1.1 200 OK\r\n")
                assert b"\r\n\r\n" in reads[0]
                assert b"data: {" in reads[0]
                assert reads[-1].endswith(END)
                assert b"".join(reads).count(DONE) == 1


async def test_an_error_after_the_end_of_an_answer_is_no_part_of_it() -> None:
    """A gateway that stops while it waits for the engine to end, too."""

    async def handle(http: Request) -> web.StreamResponse:
        reply = Reply(http, GatewaySettings(), "id")
        await reply.write(b"a")
        await reply.last(b"b")
        response = await reply.abort(errors.stopping())
        assert not reply.aborted
        return response

    runner = web.ServerRunner(Listener(handle, GatewaySettings()))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
    try:
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            raw = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 5)
            assert raw.endswith(b"\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n")
    finally:
        writer.close()
        await runner.cleanup()
