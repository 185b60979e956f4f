"""A TCP hop before an engine that resets one connection within an answer, or alters a request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

EVENT = b"data: {"


class Cutter:
    """Forwards bytes both ways; what is to go wrong is set before the next answer."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = 0
        self._server: asyncio.Server | None = None
        self.after: int | None = None
        """events of the next answer that still come; None: nothing is cut"""
        self.dies = False
        """with the cut: no further connection is taken"""
        self.cuts = 0
        self.altered: tuple[bytes, bytes] | None = None
        """in requests: what is replaced, by something as long"""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Cutter]:
        async with asyncio.TaskGroup() as group:
            open_: set[asyncio.Task[None]] = set()

            def connected(near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
                task = group.create_task(self._serve(near, back))
                open_.add(task)
                task.add_done_callback(open_.discard)
                # Here, for a task that is cancelled before it begins does nothing at all.
                task.add_done_callback(lambda _: back.transport.abort())

            self._server = server = await asyncio.start_server(connected, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            try:
                yield self
            finally:
                await _accepted(server)
                server.close()
                for task in list(open_):
                    task.cancel()

    async def _serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, forth = await asyncio.open_connection("127.0.0.1", self._to)
        asking = asyncio.create_task(self._requests(near, forth))
        try:
            await self._answers(far, back)
        except ConnectionError:
            pass
        finally:
            asking.cancel()
            forth.transport.abort()

    async def _requests(self, near: asyncio.StreamReader, forth: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await near.read(65536):
                if self.altered is not None:
                    old, new = self.altered
                    assert len(old) == len(new)
                    data = data.replace(old, new)
                forth.write(data)
                await forth.drain()

    async def _answers(self, far: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        while data := await far.read(65536):
            if self.after is not None:
                count = data.count(EVENT)
                if count > self.after:
                    back.write(_events(data, self.after))
                    await back.drain()
                    self.after = None
                    self.cuts += 1
                    if self.dies and self._server is not None:
                        self._server.close()
                    return
                self.after -= count
            back.write(data)
            await back.drain()


async def _accepted(server: asyncio.Server) -> None:
    """Takes no more, and waits until what was taken has its handler: of a server that is closed in
    between asyncio forgets the connection.
    """
    for listening in server.sockets:
        asyncio.get_running_loop().remove_reader(listening.fileno())
    for _ in range(4):
        await asyncio.sleep(0)


def _events(data: bytes, count: int) -> bytes:
    """So many events of it, and a bit of the next."""
    at = -1
    for _ in range(count + 1):
        at = data.index(EVENT, at + 1)
    return data[: at + 3]
