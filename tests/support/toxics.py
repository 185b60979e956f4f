"""A TCP hop that spoils what passes: the toxics of Toxiproxy, without its randomness.

    async with hop(engine_port) as link:
        link.toxic = Toxic("limit_data", after_bytes=1000)
        ...                       # link.port is where the gateway connects

The toxic in force works on what the engine says, from `after_bytes` of a connection on, `times`
connections long; what the gateway says passes untouched.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

Kind = Literal[
    "none",
    "latency",  # every piece comes `delay_s` late, every third one three times as late
    "bandwidth",  # no more than `rate` bytes per second
    "slicer",  # in slices of `size` bytes
    "slow_close",  # the end of the connection comes `delay_s` late
    "timeout",  # nothing comes any more, the connection stays open
    "limit_data",  # closed, without a reset
    "reset_peer",  # reset
    "down",  # reset, and nobody listens any more
]
TOXICS = tuple(kind for kind in get_args(Kind) if kind != "none")
READ_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Toxic:
    kind: Kind = "none"
    after_bytes: int = 0
    times: int | None = None
    """connections that it still spoils; None: all"""
    delay_s: float = 0.02
    rate: int = 50_000
    size: int = 7


@dataclass(slots=True)
class Link:
    """The hop; `toxic` may be changed at any time, for connections that come."""

    upstream: int
    port: int = 0
    toxic: Toxic = field(default_factory=Toxic)
    passed: int = 0
    """connections that were accepted"""
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def listening(self) -> bool:
        return self._server is not None and self._server.is_serving()

    def _take(self) -> Toxic:
        toxic = self.toxic
        if toxic.times is None:
            return toxic
        if toxic.times <= 0:
            return Toxic()
        self.toxic = replace(toxic, times=toxic.times - 1)
        return toxic

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            _reset(writer)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(answer)
        self.passed += 1
        toxic = self._take()
        try:
            engine, ask = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            _reset(answer)
            return
        finally:
            self._tasks.discard(task)
        self._tasks.add(task)
        self._writers.add(ask)
        asking = asyncio.create_task(_copy(client, ask))
        try:
            with contextlib.suppress(ConnectionError):
                await self._spoil(toxic, engine, answer)
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            asking.cancel()
            for writer in (ask, answer):
                writer.close()
                self._writers.discard(writer)
            self._tasks.discard(task)

    async def _spoil(
        self, toxic: Toxic, engine: asyncio.StreamReader, answer: asyncio.StreamWriter
    ) -> None:
        seen = 0
        late = itertools.cycle((1, 1, 3))
        while data := await engine.read(READ_BYTES):
            clean = data[: max(0, toxic.after_bytes - seen)]
            spoilt = data[len(clean) :]
            seen += len(data)
            answer.write(clean)
            await answer.drain()
            if not spoilt:
                continue
            match toxic.kind:
                case "latency":
                    await asyncio.sleep(toxic.delay_s * next(late))
                    answer.write(spoilt)
                case "bandwidth":
                    for piece in _slices(spoilt, max(1, toxic.rate // 100)):
                        answer.write(piece)
                        await asyncio.sleep(len(piece) / toxic.rate)
                case "slicer":
                    for piece in _slices(spoilt, toxic.size):
                        answer.write(piece)
                        await asyncio.sleep(0)
                case "timeout":
                    await asyncio.get_running_loop().create_future()
                case "limit_data":
                    return
                case "reset_peer":
                    _reset(answer)
                    return
                case "down":
                    await self._down()
                    return
                case _:
                    answer.write(spoilt)
            await answer.drain()
        if toxic.kind == "slow_close":
            await asyncio.sleep(toxic.delay_s)

    async def _down(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            _reset(writer)


@asynccontextmanager
async def hop(upstream: int) -> AsyncIterator[Link]:
    """A hop to a port of this machine."""
    link = Link(upstream)
    await link.start()
    try:
        yield link
    finally:
        await link.stop()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(READ_BYTES):
            sink.write(data)
            await sink.drain()
        sink.close()


def _slices(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
