"""The client's side of a streamed answer: begun late, ended well or aborted, never in between."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus

import aiohttp
from aiohttp import HttpVersion11, web
from aiohttp.helpers import rfc822_formatted_time

from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.errors import GatewayError
from spotinference.gateway.messages import SENT, Request, Sent

LAST_CHUNK = b"0\r\n\r\n"
FLUSH_TIMEOUT_S = 1.0
"""The last event before an abort gets this long to leave."""
LOW_WATER_BYTES = 16 * 1024
"""A transport takes writes without a pause while no more than this is buffered: a paused one
resumes there, an unpaused one pauses at four times as much."""


class Reply:
    __slots__ = (
        "_alive",
        "_chunked",
        "_ended",
        "_http",
        "_response",
        "_settings",
        "_transport",
        "aborted",
        "as_event",
        "headers",
        "request_id",
    )

    def __init__(self, http: Request, settings: GatewaySettings, request_id: str) -> None:
        self._http = http
        self._settings = settings
        self.request_id = request_id
        self._response: web.StreamResponse | None = None
        self._chunked = False
        self._ended = False
        """the last chunk is out, too"""
        self._transport: asyncio.Transport | None = None
        """that of a stream whose head went out past aiohttp"""
        self._alive: asyncio.Task[None] | None = None
        self.aborted = False
        self.headers: dict[str, str] = dict(http.answer_headers)
        """on every answer, streamed or whole"""
        self.as_event: Callable[[GatewayError], bytes] = GatewayError.event
        """the error in the form that this stream's clients read"""

    @property
    def begun(self) -> bool:
        """Status and headers are out."""
        return self._response is not None

    async def begin(self, headers: dict[str, str] | None = None, data: bytes = b"") -> None:
        """Status and headers go out: past aiohttp where the connection is one that stays.

        The first `data` that are there already go out with them, in one write.
        """
        http = self._http
        all_headers = {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache, no-transform",
            "X-Accel-Buffering": "no",
            "x-request-id": self.request_id,
            **self.headers,
            **(headers or {}),
        }
        if http.keep_alive and http.version == HttpVersion11:
            self._response, self._chunked = SENT, True
            self._transport = transport = self._open_transport()
            head = _head(200, all_headers | {"Transfer-Encoding": "chunked"}).encode("latin-1")
            transport.write(head + self._framed(data) if data else head)
            http.answered = True
            return
        response = web.StreamResponse(headers=all_headers)
        self._response = response
        await response.prepare(http)
        self._chunked = response.headers.get("Transfer-Encoding") == "chunked"  # not in HTTP/1.0
        if data:
            await self.write(data)

    def _open_transport(self) -> asyncio.Transport:
        transport = self._http.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        return transport

    def push(self, data: bytes) -> bool:
        """`write` without waiting, after a first `write`; False: `drain` before the next.

        Not through aiohttp's `write`, which costs more than all else on the way of a token.
        """
        transport = self._transport or self._open_transport()
        if transport.is_closing():
            raise ConnectionResetError("the client is gone")
        if not data:  # as a chunk it would be the last one
            return True
        transport.write(self._framed(data))
        return transport.get_write_buffer_size() <= LOW_WATER_BYTES

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

    async def drain(self) -> None:
        """Waits while the client takes nothing, with a limit."""
        if self._http.protocol.writing_paused:
            await self._in_time(self._http.protocol._drain_helper())  # noqa: SLF001 - as aiohttp's writer does

    def keep_alive(self, first_s: float, every_s: float) -> None:
        """From `first_s` on, spaces go out before an answer that is sent whole: JSON may begin with
        them, and a proxy sees life. The status is 200 from then on; an error later is the body of
        an aborted answer.
        """
        self.as_event = GatewayError.body
        self._alive = asyncio.get_running_loop().create_task(self._spaces(first_s, every_s))

    async def _spaces(self, first_s: float, every_s: float) -> None:
        await asyncio.sleep(first_s)
        try:
            await self.begin({"Content-Type": "application/json", "Cache-Control": "no-store"})
            while True:
                await self.write(b" ")
                await asyncio.sleep(every_s)
        except ConnectionError:
            return  # the client is gone; the request's own task hears of it too

    async def still(self) -> None:
        """No spaces any more; idempotent."""
        if self._alive is not None:
            self._alive.cancel()
            await asyncio.wait([self._alive])
            self._alive = None

    async def write(self, data: bytes) -> None:
        """Waits while the client takes nothing (so the engine is not read either), with a limit."""
        response = self._response
        if response is None:
            await self.begin(data=data)
            await self.drain()
            return
        if response is SENT:
            if not self.push(data):
                await self.drain()
            return
        transport = self._http.transport
        if transport is None or transport.get_write_buffer_size() + len(data) <= LOW_WATER_BYTES:
            with _client_gone():
                await response.write(data)
            return
        await self._in_time(response.write(data))

    async def last(self, data: bytes) -> None:
        """`write` and the end of the answer: in one write where that is ours. `finish` follows."""
        if self._response is not SENT:
            await self.write(data)
            return
        self._ended = True
        self._open_transport().write(self._framed(data) + LAST_CHUNK)
        await self.drain()

    async def finish(self) -> web.StreamResponse:
        assert self._response is not None
        if self._ended:
            return self._response
        if self._response is SENT:
            self._open_transport().write(LAST_CHUNK)
            await self.drain()
        else:
            await self._in_time(self._response.write_eof())
        return self._response

    async def send(self, body: bytes) -> web.StreamResponse:
        """A whole JSON answer, under the same deadline as a streamed one."""
        if self._alive is not None:
            await self.still()
        if self._response is not None:
            await self.write(body)
            return await self.finish()
        headers = {
            "Content-Type": "application/json",
            "Cache-Control": "no-store",
            "x-request-id": self.request_id,
            **self.headers,
        }
        http = self._http
        if (sent := at_once(http, 200, headers, body)) is not None:
            return sent
        response = web.Response(body=body, headers=headers)

        async def writing() -> None:
            await response.prepare(http)
            await response.write_eof()

        await self._in_time(writing())
        return response

    async def _in_time(self, writing: Awaitable[None]) -> None:
        try:
            with _client_gone():
                async with asyncio.timeout(self._settings.client_write_timeout_s):
                    await writing
        except TimeoutError as error:
            if (transport := self._http.transport) is not None:
                transport.abort()
            raise ConnectionResetError("the client takes nothing") from error

    async def abort(self, error: GatewayError) -> web.StreamResponse:
        """Sends the error as an event and cuts the connection: no client can take it for an end.

        The bytes must have left before the cut, or the client would never see the reason.
        """
        assert self._response is not None
        if self._ended:
            return self._response  # the client has all of it
        self.aborted = True
        transport = self._http.transport
        try:
            if transport is not None:
                async with asyncio.timeout(FLUSH_TIMEOUT_S):
                    if self._response is SENT:
                        self.push(self.as_event(error))
                    else:
                        await self._response.write(self.as_event(error))
                    await asyncio.sleep(0)
                    while transport.get_write_buffer_size():  # noqa: ASYNC110 - a transport has no event
                        await asyncio.sleep(0.005)
        except (ConnectionError, TimeoutError):
            pass  # the client is gone or takes nothing: the cut below says it all
        finally:
            cut(self._http)
        return self._response


def cut(http: web.BaseRequest) -> None:
    """Ends the connection so that no client can take it for the end of the answer."""
    transport = http.transport
    if transport is not None:
        if http.version < HttpVersion11:
            _reset_on_close(transport)
        transport.abort()


def _reset_on_close(transport: asyncio.Transport) -> None:
    """An HTTP/1.0 body ends where the connection does: only a reset tells a cut from an end.

    nginx asks in HTTP/1.0 unless it is told `proxy_http_version 1.1`.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def _client_gone() -> Iterator[None]:
    """What aiohttp raises for this is a ClientError: it would be taken for one of the engine's."""
    try:
        yield
    except aiohttp.ClientConnectionResetError as error:
        raise ConnectionResetError("the client is gone") from error


def at_once(http: Request, status: int, headers: dict[str, str], body: bytes) -> Sent | None:
    """Writes a small whole answer without waiting; None where aiohttp has to do it.

    What the socket takes without a pause needs no deadline.
    """
    transport = http.transport
    if (
        len(body) > LOW_WATER_BYTES
        or transport is None
        or transport.is_closing()
        or transport.get_write_buffer_size()
        or not http.keep_alive
        or http.version != HttpVersion11
        or http.method == "HEAD"
    ):
        return None
    transport.write(_message(status, headers, body))
    http.answered = True
    return SENT


def _message(status: int, headers: dict[str, str], body: bytes) -> bytes:
    """An answer in one piece."""
    return _head(status, headers | {"Content-Length": str(len(body))}).encode("latin-1") + body


def _head(status: int, headers: dict[str, str]) -> str:
    """Up to the body. A line break in a value would be a second answer: refused."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise ValueError("a line break in a header")
    return f"{_STATUS_LINES[status]}{lines}Date: {rfc822_formatted_time()}\r\n\r\n"


_STATUS_LINES = {
    int(status): f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus
}
