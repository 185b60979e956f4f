"""The listening side: aiohttp's HTTP parser (the strictest measured) with bounds of our own.

aiohttp has no deadline for a request's head and no cap on connections; both are here, and so are
the few ambiguous messages that it lets pass (`check`). What it says about a message it cannot
read quotes that message, key and prompt included: neither its answer nor its log line is used.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import HttpVersion11, web

from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.connection import Connection, malformed
from spotinference.gateway.errors import Code, GatewayError
from spotinference.gateway.messages import Request

Handler = Callable[[Request], Awaitable[web.StreamResponse]]

SWEEP_S = 1.0
_HOST = re.compile(r"[A-Za-z0-9._~%-]*(:[0-9]*)?|\[[0-9A-Fa-f:.]+\](:[0-9]*)?")
EXPECTED = "100-continue"


def check(http: web.BaseRequest) -> None:
    """`malformed_http` for a message that another peer could read differently."""
    headers = http.headers
    if "_" in "".join(headers):
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


class Listener(web.Server):
    """`web.Server` that makes `Connection`s and closes the slow ones."""

    def __init__(
        self,
        handler: Handler,
        settings: GatewaySettings,
        on_refused: Callable[[GatewayError], None] = lambda _: None,
        is_full: Callable[[], bool] = lambda: False,
        refuse: Callable[[Request], bool] = lambda _: False,
    ) -> None:
        """`on_refused` is told of messages that never became a request. While `is_full`, `refuse`
        may answer a request that came whole, at once; False: it goes its usual way.
        """
        super().__init__(
            cast("Any", handler),
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=settings.idle_timeout_s,
            max_line_size=settings.max_line_bytes,
            max_field_size=settings.max_header_bytes,
            max_headers=settings.max_headers,
            lingering_time=1.0,
            auto_decompress=False,
        )
        self.handle = handler
        self.on_refused = on_refused
        self.is_full = is_full
        self.refuse = refuse
        self._head_timeout_s = settings.head_timeout_s
        self.write_timeout_s = settings.client_write_timeout_s
        self.max_connections = settings.max_connections

    @property
    def count(self) -> int:
        """Of the connections; `connections` would make a list of them."""
        return len(self._connections)

    def now(self) -> float:
        return self._loop.time()

    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)

    async def sweep(self) -> None:
        """Closes connections whose head did not come in time; runs until cancelled."""
        while True:
            await asyncio.sleep(min(SWEEP_S, self._head_timeout_s / 4))
            latest = self.now() - self._head_timeout_s
            for connection in self.connections:
                assert isinstance(connection, Connection)
                if connection.owed_since is not None and connection.owed_since < latest:
                    connection.force_close()
