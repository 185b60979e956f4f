"""The client's side of a streamed answer: begun late, ended well or aborted, never in between."""

from __future__ import annotations

import asyncio

from aiohttp import web

from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.errors import GatewayError

FLUSH_TIMEOUT_S = 1.0
"""The last event before an abort gets this long to leave."""
HIGH_WATER_BYTES = 64 * 1024


class Reply:
    def __init__(self, http: web.BaseRequest, settings: GatewaySettings, request_id: str) -> None:
        self._http = http
        self._settings = settings
        self.request_id = request_id
        self._response: web.StreamResponse | None = None
        self.aborted = False

    @property
    def begun(self) -> bool:
        """Status and headers are out."""
        return self._response is not None

    async def begin(self, headers: dict[str, str] | None = None) -> None:
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache, no-transform",
                "X-Accel-Buffering": "no",
                "x-request-id": self.request_id,
                **(headers or {}),
            }
        )
        self._response = response
        await response.prepare(self._http)

    async def write(self, data: bytes) -> None:
        """Waits while the client takes nothing (so the engine is not read either), with a limit."""
        if self._response is None:
            await self.begin()
        response = self._response
        assert response is not None
        transport = self._http.transport
        if transport is not None and transport.get_write_buffer_size() > HIGH_WATER_BYTES:
            try:
                async with asyncio.timeout(self._settings.client_write_timeout_s):
                    await response.write(data)
            except TimeoutError as error:
                transport.abort()
                raise ConnectionResetError("the client takes nothing") from error
            return
        await response.write(data)

    async def finish(self) -> web.StreamResponse:
        assert self._response is not None
        await self._response.write_eof()
        return self._response

    async def abort(self, error: GatewayError) -> web.StreamResponse:
        """Sends the error as an event and cuts the connection: no client can take it for an end.

        The bytes must have left before the cut, or the client would never see the reason.
        """
        assert self._response is not None
        self.aborted = True
        transport = self._http.transport
        try:
            if transport is not None:
                await self._response.write(error.event())
                async with asyncio.timeout(FLUSH_TIMEOUT_S):
                    await asyncio.sleep(0)
                    while transport.get_write_buffer_size():  # noqa: ASYNC110 - a transport has no event
                        await asyncio.sleep(0.005)
        except (ConnectionError, TimeoutError):
            pass  # the client is gone or takes nothing: the cut below says it all
        finally:
            if transport is not None:
                transport.abort()
        return self._response
