"""The listening side: aiohttp's HTTP parser (the strictest measured) with deadlines of our own.

aiohttp has no deadline for a request's head and no cap on connections; both are here.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from spotinference.gateway.config import GatewaySettings

SWEEP_S = 1.0


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


class Listener(web.Server):
    """`web.Server` that makes `Connection`s and closes the slow ones."""

    def __init__(self, handler: Any, settings: GatewaySettings) -> None:
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
        response: web.StreamResponse = await self._handle(request)
        return response

    async def sweep(self) -> None:
        """Closes connections whose head did not come in time; runs until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            latest = self.now() - self._head_timeout_s
            for connection in self.connections:
                if (
                    isinstance(connection, Connection)
                    and connection.owed_since is not None
                    and connection.owed_since < latest
                ):
                    connection.force_close()
