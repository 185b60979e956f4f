"""A request and its answer, as aiohttp's server and the gateway hand them to each other."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from aiohttp import web
from aiohttp.http import StreamWriter

from spotinference.api.keys import ApiKey
from spotinference.gateway.metrics import OTHER


class Request(web.BaseRequest):
    """What the gateway knows of a request, beside its message.

    aiohttp's writer is made when it is asked for: most answers go out past it (`reply.at_once`).
    """

    ATTRS = web.BaseRequest.ATTRS | frozenset(
        ("_made", "answer_headers", "key", "request_id", "tier_name")
    )
    _made: StreamWriter | None = None
    request_id: str = ""
    key: ApiKey | None = None
    """once it is authenticated"""
    tier_name: str = OTHER
    """for metrics"""
    answer_headers: Mapping[str, str] = MappingProxyType({})
    """what any answer to this request carries"""

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
