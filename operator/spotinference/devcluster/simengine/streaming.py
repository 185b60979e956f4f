"""One streamed answer, and what goes wrong in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
from collections.abc import Awaitable, Callable

from aiohttp import web

from spotinference.devcluster.simengine import protocol, wire
from spotinference.devcluster.simengine.engine import Aborted, Request
from spotinference.devcluster.simengine.faults import Fault

HANG_S = 3600.0
_SSE = "text/event-stream; charset=utf-8"
_LINGER_RST = struct.pack("ii", 1, 0)


class Stream:
    """One streamed answer, and what goes wrong in it."""

    def __init__(
        self,
        kill: Callable[[], Awaitable[None]],
        request: web.Request,
        work: Request,
        fault: Fault,
        writer: wire.Writer,
    ) -> None:
        self.on_hang: Callable[[], None] = lambda: None
        """called when the stream falls silent by a fault"""
        self._kill = kill
        self._request = request
        self._work = work
        self._fault = fault
        self._writer = writer
        self._chunks = 0
        self._response = web.StreamResponse(headers={"Content-Type": _SSE})

    async def run(self) -> web.StreamResponse:
        response, work, fault, writer = self._response, self._work, self._fault, self._writer
        left = len(work.sequences)
        faulty = fault.mode not in {"none", "status"}
        opened = False
        while left:
            try:
                outputs = await work.outputs()
            except Aborted:
                if not opened:
                    raise
                return await self._error_event()
            if not opened:
                # Headers only with the first token: until then an error can still be a status.
                await response.prepare(self._request)
                for chunk in writer.opening():
                    await self._write(chunk)
                opened = True
            for out in outputs:
                if out.finish_reason == "abort":
                    left -= 1
                    continue  # vLLM sends no chunk for what has neither text nor tokens
                chunk = writer.chunk(out)
                if not chunk:
                    left -= out.finish_reason is not None
                    continue
                if faulty and 0 <= fault.after_chunks <= self._chunks:
                    return await self._break(chunk)
                await self._write(chunk)
                self._chunks += 1
                if out.finish_reason is not None:
                    left -= 1
        if faulty and fault.after_chunks < 0:
            return await self._break(b"")  # after everything but [DONE]
        for chunk in writer.closing():
            await self._write(chunk)
        await self._write(writer.done)
        await response.write_eof()
        return response

    async def _write(self, chunk: bytes) -> None:
        size = self._fault.slice_bytes
        if not size:
            await self._response.write(chunk)
            return
        for start in range(0, len(chunk), size):
            await self._response.write(chunk[start : start + size])
            await asyncio.sleep(0)

    async def _break(self, chunk: bytes) -> web.StreamResponse:
        """The fault, instead of `chunk` and all that would follow."""
        response, transport = self._response, self._request.transport
        match self._fault.mode:
            case "rst":
                await _flushed(transport)
                reset(transport)
            case "fin":
                await _flushed(transport)
                _close(transport)
            case "fin_mid_line":
                await response.write(chunk[: len(chunk) // 2])
                await _flushed(transport)
                _close(transport)
            case "clean_no_done":
                await response.write_eof()
                return response
            case "done_no_finish":
                await response.write(wire.DONE)
                await response.write_eof()
                return response
            case "error_event":
                return await self._error_event()
            case "garbage":
                await response.write(b'data: {"id": broken\n\nnot an event at all\n\n')
                await response.write_eof()
                return response
            case "huge_line":
                block = b"x" * 65536
                await response.write(b'data: {"x":"')
                for _ in range(self._fault.size // len(block) + 1):
                    await response.write(block)
            case "bad_utf8":
                await response.write(b'data: {"choices":[{"text":"\xff\xfe\xc3"}]}\n\n')
            case "sigkill":
                await _flushed(transport)
                os.kill(os.getpid(), signal.SIGKILL)
            case "rst_all":
                await _flushed(transport)
                await self._kill()
            case _:
                self.on_hang()
        await asyncio.sleep(HANG_S)
        return response

    async def _error_event(self) -> web.StreamResponse:
        """How vLLM ends a stream when its core dies: an error, and [DONE] all the same."""
        error = protocol.core_died()
        await self._response.write(b"data: " + error.body() + b"\n\n" + wire.DONE)
        await self._response.write_eof()
        return self._response


async def _flushed(transport: asyncio.Transport | None) -> None:
    """Gives the kernel what was written: a reset must not take back chunks already sent."""
    for _ in range(50):
        if transport is None or transport.is_closing() or not transport.get_write_buffer_size():
            break
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.005)


def _close(transport: asyncio.Transport | None) -> None:
    if transport is not None:
        transport.close()


def reset(transport: asyncio.Transport | None) -> None:
    """RST instead of FIN."""
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError, ValueError):  # it is closed already (asyncio, uvloop)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RST)
    transport.abort()
