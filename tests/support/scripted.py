"""An engine whose every byte the test decides: for peers that no engine of ours would imitate.

async def answer(call: Call) -> None:
    await call.begin()
    await call.send(token(0))
    call.reset()

async with scripted(answer) as port: ...
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import orjson

from spotinference.api.kinds import POD
from tests.support.eventually import eventually
from tests.support.gateway import Bench

DONE = b"data: [DONE]\n\n"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass(slots=True)
class Call:
    """One request to the scripted engine."""

    head: bytes
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def begin(self) -> None:
        """The head of a stream."""
        await self.raw(SSE)

    async def send(self, event: bytes) -> None:
        """One HTTP chunk."""
        await self.raw(b"%x\r\n%s\r\n" % (len(event), event))

    async def end(self) -> None:
        """The body ends well."""
        await self.raw(b"0\r\n\r\n")

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Call], Awaitable[None]]


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[int]:
    """The port of an engine that answers every request so."""
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                await script(Call(head, body, reader, writer))
                if writer.is_closing():
                    return
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the gateway has hung up, or the test is over
        finally:
            running.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*running, return_exceptions=True)


async def join(b: Bench, port: int, name: str = "scripted") -> None:
    """Its pod becomes a replica of `demo`."""
    b.kube.put(POD, b.pod(name, "demo", port))
    await eventually(lambda: name in b.routable(), 5, "replica routable")


def token(number: int, *, finish: str | None = None, text: str = "x") -> bytes:
    """The event of one token of a chat, with its id as the gateway asks for it."""
    choice = {
        "index": 0,
        "delta": {"content": text},
        "token_ids": [number],
        "finish_reason": finish,
    }
    chunk = {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "demo",
        "choices": [choice],
    }  # fmt: skip
    if number == 0:
        chunk["prompt_token_ids"] = [1, 2, 3]
    return b"data: " + orjson.dumps(chunk) + b"\n\n"
