"""The listening side: aiohttp's HTTP parser (the strictest measured) with deadlines of our own.

aiohttp has no deadline for a request's head and no cap on connections; both are here, and so are
the few ambiguous messages that it lets pass (`check`). What it says about a message it cannot
read quotes that message, key and prompt included: neither its answer nor its log line is used.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable
from typing import Any, cast

import structlog
from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.errors import Code, GatewayError

log = structlog.get_logger(__name__)

SWEEP_S = 1.0
REQUEST_ID_BYTES = 16
_HOST = re.compile(r"[A-Za-z0-9._~%-]*(:[0-9]*)?|\[[0-9A-Fa-f:.]+\](:[0-9]*)?")
EXPECTED = "100-continue"
SPOKEN = (HttpVersion10, HttpVersion11)


class UnspokenVersion(Exception):
    """Neither HTTP/1.0 nor HTTP/1.1."""


def check(http: web.BaseRequest) -> None:
    """`malformed_http` for a message that another peer could read differently."""
    headers = http.headers
    if any("_" in name for name in headers):
        # WSGI-like peers read X_Y as X-Y: two readings of one header, so neither.
        raise malformed("Header names with underscores are not taken.")
    if _HOST.fullmatch(headers.get("Host", "")) is None:
        raise malformed("Host is not a name or an address with a port.")
    if (coding := headers.get("Transfer-Encoding")) is not None:
        if coding.lower() != "chunked":
            raise malformed("No Transfer-Encoding but chunked is taken.")
        if http.version < HttpVersion11:
            raise malformed("HTTP/1.0 has no Transfer-Encoding.")
    if headers.get("Expect", EXPECTED).lower() != EXPECTED:
        raise GatewayError(Code.MALFORMED_HTTP, f"No Expect but {EXPECTED} can be met.", status=417)


def malformed(message: str) -> GatewayError:
    """Ends the request and, by its code, the connection: where the next one begins is unsure."""
    return GatewayError(Code.MALFORMED_HTTP, message)


class Connection(RequestHandler):
    """One client connection; knows since when it owes us the rest of a request's head."""

    owed_since: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        listener = self._manager
        assert isinstance(listener, Listener)
        self.owed_since = listener.now()
        if len(listener.connections) > listener.max_connections:
            cast("asyncio.Transport", transport).abort()  # uvloop's are no subclass of it

    def data_received(self, data: bytes) -> None:
        if self.owed_since is None and self._current_request is None:
            listener = self._manager
            if isinstance(listener, Listener):
                self.owed_since = listener.now()
        super().data_received(data)
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            self._body_broke()

    def _body_broke(self) -> None:
        """The parser gave up inside a body: its reader would wait for the rest in vain."""
        request = self._current_request
        if request is not None and not request.content.is_eof():
            request.content.set_exception(web.RequestPayloadError())

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - quotes the client's bytes
    ) -> web.StreamResponse:
        """Answers what the parser refused; aiohttp's own would log and send the bytes of it."""
        if request.writer.output_size > 0:
            raise ConnectionError("a second answer would be read as part of the first")
        kind = type(exc).__name__
        if status < 500:
            error = malformed(f"The message is not HTTP/1.1 as the gateway takes it ({kind}).")
            log.debug("request.malformed", kind=kind)
        else:
            error = GatewayError(Code.INTERNAL_ERROR, "Internal error.")
            log.error("connection.bug", kind=kind)
        listener = self._manager
        if isinstance(listener, Listener):
            listener.on_refused(error)
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


class Listener(web.Server):
    """`web.Server` that makes `Connection`s and closes the slow ones."""

    def __init__(
        self,
        handler: Any,
        settings: GatewaySettings,
        on_refused: Callable[[GatewayError], None] = lambda _: None,
    ) -> None:
        """`on_refused` is told of messages that never became a request."""
        super().__init__(
            self._received,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=settings.idle_timeout_s,
            max_line_size=settings.max_line_bytes,
            max_field_size=settings.max_header_bytes,
            max_headers=settings.max_headers,
            lingering_time=1.0,
            auto_decompress=False,
        )
        self._handle = handler
        self.on_refused = on_refused
        self._head_timeout_s = settings.head_timeout_s
        self.max_connections = settings.max_connections

    def now(self) -> float:
        return self._loop.time()

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)

    async def _received(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        if isinstance(connection, Connection):
            connection.owed_since = None
            if request.version not in SPOKEN:
                request._cache["version"] = HttpVersion11  # noqa: SLF001 - the answer's is this one
                return connection.handle_error(request, 400, UnspokenVersion())
        response: web.StreamResponse = await self._handle(request)
        return response

    async def sweep(self) -> None:
        """Closes connections whose head did not come in time; runs until cancelled."""
        while True:
            await asyncio.sleep(min(SWEEP_S, self._head_timeout_s / 4))
            latest = self.now() - self._head_timeout_s
            for connection in self.connections:
                if (
                    isinstance(connection, Connection)
                    and connection.owed_since is not None
                    and connection.owed_since < latest
                ):
                    connection.force_close()
