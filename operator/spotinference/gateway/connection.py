"""One client connection: aiohttp's parser and its verdicts, a shorter way from there to the handler.

aiohttp's own loop over the requests of a connection costs two tasks, two futures and a writer per
request (decision 0021). Here a request is one task, made when its head has come, and an idle
connection has none. What is parsed, when reading pauses, how an upgrade is declined and how a
connection is lost is still aiohttp's `RequestHandler`, which this is one of.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any, cast

import structlog
from aiohttp import HttpVersion10, HttpVersion11, StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import RawRequestMessage
from aiohttp.tcp_helpers import tcp_keepalive
from aiohttp.web_protocol import ERROR, RequestHandler, _ErrInfo

from spotinference.gateway.errors import Code, GatewayError
from spotinference.gateway.messages import Request, Sent

if TYPE_CHECKING:
    from spotinference.gateway.listener import Listener

log = structlog.get_logger(__name__)

REQUEST_ID_BYTES = 16
SPOKEN = (HttpVersion10, HttpVersion11)
_NOT_NOW: Any = None
"""Where aiohttp's types know no None."""


class UnspokenVersion(Exception):
    """Neither HTTP/1.0 nor HTTP/1.1."""


def malformed(message: str) -> GatewayError:
    """Ends the request and, by its code, the connection: where the next one begins is unsure."""
    return GatewayError(Code.MALFORMED_HTTP, message)


class Connection(RequestHandler):
    """Answers the requests of one client in their order; knows since when it owes us a head."""

    def __init__(self, listener: Listener, **bounds: Any) -> None:
        super().__init__(listener, **bounds)
        self._listener = listener
        self.owed_since: float | None = None
        """in the loop's time: the rest of a request's head, or the first one"""

    # --- what the transport says ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        BaseProtocol.connection_made(self, transport)
        socket = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it
        tcp_keepalive(socket)
        listener = self._listener
        listener.connection_made(self, socket)
        self.owed_since = listener.now()
        self._close_when_idle()
        if listener.count > listener.max_connections:
            socket.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        if exc is not None:
            exc.__traceback__ = None  # its frames hold what was being written, and that holds us
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        messages = self._messages
        if messages and isinstance(messages[-1][0], _ErrInfo):
            self._body_broke()
        if self._task_handler is not None or self._force_close or self._close:
            return
        if messages:
            self.owed_since = None
            if not self._refused_at_once():
                self._task_handler = self._loop.create_task(self._answer())
        elif self.owed_since is None and data:
            self.owed_since = self._listener.now()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Aiohttp asks at the end of every body, paused or not."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def _body_broke(self) -> None:
        """The parser gave up inside a body: its reader would wait for the rest in vain."""
        content = None
        if len(self._messages) > 1:
            content = self._messages[-2][1]
        elif self._current_request is not None:
            content = self._current_request.content
        if content is not None and not content.is_eof():
            content.set_exception(web.RequestPayloadError())

    # --- requests -------------------------------------------------------------------------------

    async def _answer(self) -> None:
        """All requests that have come; then the connection is idle, or closed."""
        self._request_in_progress = True
        try:
            stays = True
            while stays and self._messages and not self._force_close:
                stays = await self._one(*self._next())
        except asyncio.CancelledError:
            self.force_close()
            raise
        except Exception as error:  # noqa: BLE001 - the outermost frame of a connection
            if not isinstance(error, ConnectionError):
                self.log_exception(exc_info=error)
            self.force_close()
        finally:
            self._task_handler = None  # else a cycle: connection, task, frames of its exception
            self._request_in_progress = False
            if self._handler_waiter is not None and not self._handler_waiter.done():
                self._handler_waiter.set_result(None)
        if self._force_close:
            return
        self._task_handler = None
        if stays and not self._close:
            self._close_when_idle()
            return
        self._close = True
        if self.transport is not None:
            self._let_go(self.transport)

    def _refused_at_once(self) -> bool:
        """Whether the one request that came was refused without a task: it takes a crowd to need it."""
        if not self._listener.is_full() or len(self._messages) != 1:
            return False
        message, content = self._messages[0]
        if isinstance(message, _ErrInfo) or not content.is_eof():
            return False
        if message.version != HttpVersion11 or message.upgrade:
            return False
        request = Request(message, content, self, _NOT_NOW, _NOT_NOW, self._loop)
        if not self._listener.refuse(request):
            return False
        self._next()
        self._close_when_idle()
        return True

    def _next(self) -> tuple[RawRequestMessage | _ErrInfo, StreamReader]:
        """The oldest, out of the queue; reading goes on once there is room in it."""
        found = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        return found

    async def _one(self, message: RawRequestMessage | _ErrInfo, content: StreamReader) -> bool:
        """Answers one request; whether another may follow on this connection."""
        refused = message if isinstance(message, _ErrInfo) else None
        request = Request(
            ERROR if isinstance(message, _ErrInfo) else message,
            content, self, _NOT_NOW, self._task_handler or _NOT_NOW, self._loop,
        )  # fmt: skip
        self._current_request = request
        response: web.StreamResponse
        try:
            if refused is not None:
                response = self.handle_error(request, refused.status, refused.exc)
            elif request.version not in SPOKEN:
                request._cache["version"] = HttpVersion11  # noqa: SLF001 - the answer's is this one
                response = self.handle_error(request, 400, UnspokenVersion())
            else:
                response = await self._listener.handle(request)
        except ConnectionError:
            return False  # the client is gone
        except Exception as error:  # noqa: BLE001 - the outermost frame of a request
            response = self.handle_error(request, 500, error)
        finally:
            self._current_request = None
            request._task = _NOT_NOW  # noqa: SLF001 - else a cycle: task, frame, request, task
        if not isinstance(response, Sent) or self._upgraded:
            try:
                async with asyncio.timeout(self._listener.write_timeout_s):
                    response, gone = await self.finish_response(request, response, None)
            except TimeoutError:
                if self.transport is not None:
                    self.transport.abort()
                return False  # the client takes nothing
            if gone:
                return False
        if self.transport is None or self.transport.is_closing():
            return False  # the answer was cut
        self._keepalive = bool(response.keep_alive)
        # A rest is read also where the connection ends: a reset would overtake the answer.
        return (content.is_eof() or await self._rest(content)) and self._keepalive

    async def _rest(self, content: StreamReader) -> bool:
        """Reads and drops what is left of a body, for a while; whether its end came."""
        try:
            async with asyncio.timeout(self._lingering_time):
                while not content.is_eof():
                    await content.readany()
        except (TimeoutError, web.RequestPayloadError, ConnectionError):
            return False
        return True

    # --- errors and ends ------------------------------------------------------------------------

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - quotes the client's bytes
    ) -> web.StreamResponse:
        """Answers what the parser refused; aiohttp's own would log and send the bytes of it."""
        if getattr(request, "answered", False) or request.writer.output_size > 0:
            raise ConnectionError("a second answer would be read as part of the first")
        kind = type(exc).__name__
        if status < 500:
            error = malformed(f"The message is not HTTP/1.1 as the gateway takes it ({kind}).")
            log.debug("request.malformed", kind=kind)
        else:
            error = GatewayError(Code.INTERNAL_ERROR, "Internal error.")
            log.error("connection.bug", kind=kind)
        self._listener.on_refused(error)
        response = web.Response(
            body=error.body(),
            status=error.status,
            headers={**error.headers(), "x-request-id": secrets.token_hex(REQUEST_ID_BYTES)},
        )
        response.force_close()
        return response

    def log_exception(self, *_: Any, **about: Any) -> None:
        """Only what kind of error: its text may quote the client."""
        log.error("connection.bug", kind=type(about.get("exc_info")).__name__)

    def force_close(self) -> None:
        transport = self.transport
        super().force_close()
        if transport is not None:
            self._let_go(transport)

    def _let_go(self, transport: asyncio.Transport) -> None:
        """Closes; what is unsent may still leave, but who takes nothing does not hold us for ever."""
        transport.close()
        if transport.get_write_buffer_size():
            self._loop.call_later(self._listener.write_timeout_s, transport.abort)

    def _close_when_idle(self) -> None:
        """From now on `keepalive_timeout` counts; one timer, which looks again when it is early."""
        at = self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(at, self._process_keepalive)

    def _process_keepalive(self) -> None:
        self._keepalive_handle = None
        if self._force_close or self._task_handler is not None:
            return  # a request that runs sets it anew
        if self._loop.time() < self._next_keepalive_close_time:
            at = self._next_keepalive_close_time
            self._keepalive_handle = self._loop.call_at(at, self._process_keepalive)
            return
        self.force_close()
