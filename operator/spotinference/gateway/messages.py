"""A request and its answer, as aiohttp's server and the gateway hand them to each other."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from types import MappingProxyType

from aiohttp import web
from aiohttp.http import StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD

from spotinference.api.keys import ApiKey
from spotinference.gateway.metrics import OTHER

_NOTHING: deque[bytes] = deque(maxlen=0)


class Request(web.BaseRequest):
    """What the gateway knows of a request, beside its message.

    aiohttp's writer is made when it is asked for: most answers go out past it (`reply.at_once`).
    """

    ATTRS = web.BaseRequest.ATTRS | frozenset(
        ("_made", "answer_headers", "answered", "key", "request_id", "tier_name")
    )
    _made: StreamWriter | None = None
    request_id: str = ""
    answered: bool = False
    """bytes of an answer went out past aiohttp's writer"""
    key: ApiKey | None = None
    """once it is authenticated"""
    tier_name: str = OTHER
    """for metrics"""
    answer_headers: Mapping[str, str] = MappingProxyType({})
    """what any answer to this request carries"""

    @property
    def begun(self) -> bool:
        """Bytes of an answer are out."""
        return self.answered or (self._made is not None and self._made.output_size > 0)

    def body_that_came(self) -> bytes:
        """The whole body, once it has ended; `read_nowait` without its machinery."""
        if self._payload is EMPTY_PAYLOAD:
            return b""
        parts: deque[bytes] = self._payload._buffer  # noqa: SLF001 - of it nothing was read, and no more comes
        whole = parts[0] if len(parts) == 1 else b"".join(parts)
        self._payload._buffer = _NOTHING  # noqa: SLF001 - while it is parked, half a KiB less
        return whole

    @property
    def _payload_writer(self) -> StreamWriter:
        if self._made is None:
            self._made = StreamWriter(self._protocol, self._loop)
        return self._made

    @_payload_writer.setter
    def _payload_writer(self, _: object) -> None:
        """What the base class is given is not used."""


class Sent(web.StreamResponse):
    """Tells aiohttp that the whole answer is out already, and that the connection stays.

    Its own way of writing one costs more than all else that a request needs on the client's side.
    """

    @property
    def prepared(self) -> bool:
        return True

    @property
    def keep_alive(self) -> bool:
        return True

    async def prepare(self, request: web.BaseRequest) -> None:
        del request

    async def write_eof(self, data: bytes = b"") -> None:
        del data


SENT = Sent()
"""Without a state of its own, so one is enough."""
