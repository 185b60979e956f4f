"""Answers of one JSON object: fetched whole before a byte goes out, so every failure is tried elsewhere."""

from __future__ import annotations

import orjson
from aiohttp import web

from spotinference.api.kinds import Json
from spotinference.clients.engine_http import Answer, Broken
from spotinference.core import chunks
from spotinference.core.chunks import Endpoint
from spotinference.core.evacuation import Progress
from spotinference.gateway.attempt import Attempt
from spotinference.gateway.engines import Failed, Lost
from spotinference.gateway.exchange import Exchange
from spotinference.gateway.replicas import Replica

WHOLE = Progress(
    movable=True, repeats=True, tokens=0, tokens_left=None, tokens_per_s=None, whole=True
)


class Whole(Exchange):
    __slots__ = ("_answer",)

    async def _give(self) -> web.StreamResponse:
        await self._until_whole()
        self._first_byte()
        self.trace.token()
        return await self._reply.send(self._answer)

    def progress(self) -> Progress:
        return WHOLE

    async def _attempt(self, replica: Replica) -> None:
        body = orjson.dumps(self._prepared.body)  # not before: it may be parked for minutes
        engines = self._context.engines
        name = self._attempt_id(replica)
        with engines.attempt(replica, self._search.work, self, stream=False) as attempt:
            answer = await engines.ask(attempt, self._prepared.endpoint, body, request_id=name)
            try:
                self._answer = await self._read(answer, attempt)
            except Broken as error:
                raise Lost(f"{replica.name}: {type(error).__name__}: {error}") from error
            # A cut answer may look like a whole one to HTTP.
            if (decoded := chunks.decode(self._answer)) is None:
                raise Lost(f"{replica.name}: the answer is not whole")
            if _given_up(self._prepared.endpoint, decoded):
                raise Lost(f"{replica.name}: the engine gave the answer up")
        self.account.use(decoded.get("usage"))

    async def _read(self, answer: Answer, attempt: Attempt) -> bytes:
        """The body, within its bound."""
        limit = self._context.settings.max_answer_bytes
        first = await answer.part()
        if answer.ended and len(first) <= limit:  # it came with its head, as most do
            return first
        whole = bytearray(first)
        while len(whole) <= limit:
            attempt.first_byte()
            if not (part := await answer.part()):
                return bytes(whole)
            whole += part
        raise Failed(f"an answer of more than {limit} bytes")


def _given_up(endpoint: Endpoint, decoded: Json) -> bool:
    if endpoint.chunked:
        for choice in decoded.get("choices") or ():
            if choice.get("finish_reason") in {"abort", "error"}:
                return True
        return False
    return decoded.get("status") in {"failed", "cancelled", "in_progress"}
