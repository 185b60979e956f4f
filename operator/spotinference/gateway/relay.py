"""Requests that are no streams of chunks: answered whole, or a Responses stream.

They wait, are routed, tried again and refused as generation is (`Exchange`); what differs is how
an answer is read, and how one is carried on.
"""

from __future__ import annotations

import time

import orjson
import structlog
from aiohttp import web

from spotinference.api.kinds import Json
from spotinference.clients.engine_http import Broken
from spotinference.core import chunks, responses
from spotinference.core.chunks import Endpoint
from spotinference.core.continuation import Class, Prepared
from spotinference.core.responses import Answer
from spotinference.core.splice import Diverged, EngineFailed
from spotinference.core.stream import Framer, events
from spotinference.gateway import engines
from spotinference.gateway.engines import Failed, Lost
from spotinference.gateway.errors import Code, GatewayError
from spotinference.gateway.exchange import FAILURES, KEEP_ALIVE, Exchange
from spotinference.gateway.replicas import Replica

log = structlog.get_logger(__name__)


def prepare(endpoint: Endpoint, body: Json) -> Prepared:
    """A request whose answer is one JSON object: nothing to carry on, only to ask again."""
    return Prepared(
        endpoint=endpoint,
        body=body,
        kind=Class.RESTART,
        reason="answered whole",
        stream=False,
        hide_token_ids=False,
        include_usage=False,
        continuous_usage=False,
    )


class Relay(Exchange):
    """Fetches the answer whole before a byte goes out, so every failure may be tried elsewhere."""

    async def _plain(self) -> web.StreamResponse:
        while True:
            replica = await self._search.replica()
            body = orjson.dumps(self._prepared.body)  # not before: it may be parked for minutes
            try:
                answer = await self._whole(replica, body)
            except FAILURES as failure:
                await self._failed(replica, failure)
                continue
            self._first_byte()
            self.trace.token()
            return await self._reply.send(answer)

    async def _whole(self, replica: Replica, body: bytes) -> bytes:
        limit = self._context.settings.max_answer_bytes
        answer = bytearray()
        async with self._context.engines.answer(
            replica, self._prepared.endpoint, body, request_id=self._attempt_id(replica), stream=False,
            work=self._search.work,
        ) as attempt:  # fmt: skip
            response = self._opened(attempt)
            try:
                async for part in response.parts():
                    self._expect_more()
                    answer += part
                    if len(answer) > limit:
                        raise Failed(f"an answer of more than {limit} bytes")
            except Broken as error:
                raise Lost(f"{replica.name}: {type(error).__name__}: {error}") from error
            # A cut answer may look like a whole one to HTTP.
            if (decoded := chunks.decode(bytes(answer))) is None:
                raise Lost(f"{replica.name}: the answer is not whole")
            if decoded.get("status") in {"failed", "cancelled", "in_progress"}:
                raise Lost(f"{replica.name}: the engine gave the answer up")
        if isinstance(usage := decoded.get("usage"), dict):
            self.account.use(usage)
        return bytes(answer)


class ResponsesRelay(Relay):
    """A response, whole or streamed; a stream is replayed when its replica is lost."""

    _answer: Answer

    async def run(self) -> web.StreamResponse:
        self._answer = Answer()
        self._reply.as_event = self._error_event
        self._waiting.keep_alive = self._keep_alive
        return await super().run()

    def _keep_alive(self) -> bytes:
        return self._answer.keep_alive(
            responses.waiting(
                self._prepared.body,
                response_id=f"resp_{self._id}",
                created_at=int(self._context.clock.now().timestamp()),
                model=self._waiting.tier.names[0],
            )
        )

    def _settle_account(self) -> None:
        super()._settle_account()
        if self._answer.usage is not None:
            self.account.use(self._answer.usage)

    def _error_event(self, error: GatewayError) -> bytes:
        return responses.error_event(
            error.message,
            kind=error.code.value.type,
            code=error.code.wire,
            param=error.param,
            status=error.status,
            sequence=self._answer.sequence,
        )

    def _delivered_anything(self) -> bool:
        return self._answer.began

    async def _stream(self) -> None:
        metrics = self._context.metrics
        while True:
            replica = await self._search.replica()
            if self._answer.began:
                metrics.replayed_tokens.labels(self._waiting.tier.ref.name).inc(
                    self._answer.start_replay()
                )
            try:
                await self._read(replica)
            except Diverged as error:
                metrics.continuations.labels(Class.REPLAY.value, "diverged").inc()
                raise GatewayError(
                    Code.CONTINUATION_DIVERGED, f"The response cannot be continued: {error}."
                ) from error
            except FAILURES as failure:
                await self._failed(replica, failure)
            else:
                return
            if self._answer.began:
                self._continuable()

    def _continuable(self) -> None:
        reason = self._prepared.reason
        if self._prepared.kind is Class.REPLAY:
            if self._answer.replayable:
                return
            reason = f"it is longer than {responses.MAX_RAW_BYTES} bytes"
        self._context.metrics.continuations.labels("refused", "refused").inc()
        raise GatewayError(
            Code.NOT_CONTINUABLE,
            f"The replica was lost and the response cannot be continued: {reason}.",
        )

    async def _read(self, replica: Replica) -> None:
        """One attempt; returns when the response is complete."""
        framer = Framer()
        beat_at = time.monotonic() + self._context.settings.heartbeat_s
        first, carried_on = True, self._answer.began
        async with self._context.engines.answer(
            replica,
            self._prepared.endpoint,
            orjson.dumps(self._prepared.body),
            request_id=self._attempt_id(replica),
            stream=True,
            work=self._search.work,
            patience=self._waiting.first_part,
        ) as attempt:
            response = self._opened(attempt)
            try:
                async for data in response.parts():
                    if first:
                        self._expect_more()
                    out, failure = self._events(framer.feed(data))
                    if out:
                        if first:
                            first = False
                            await self._began(replica)
                            self._continued(carried_on)
                        await self._reply.write(out)
                        self.trace.token()
                    elif self._reply.begun and time.monotonic() >= beat_at:
                        beat_at = time.monotonic() + self._context.settings.heartbeat_s
                        await self._reply.write(KEEP_ALIVE)
                    if failure is not None:
                        raise failure
                    if self._answer.done:
                        await engines.to_the_end(response)
                        return
            except Broken as error:
                raise Lost(f"{replica.name}: {type(error).__name__}: {error}") from error
        raise Lost(f"{replica.name}: the stream ended before the response did")

    def _continued(self, carried_on: bool) -> None:
        if carried_on:
            self._context.metrics.continuations.labels(Class.REPLAY.value, "continued").inc()

    def _events(self, whole: bytes) -> tuple[bytes, Exception | None]:
        """What the client gets of these events; what came before a failure is the client's."""
        out: list[bytes] = []
        try:
            for event in events(whole):
                if event.data is not None and not self._answer.done:
                    out.append(self._answer.feed(event.data))  # noqa: PERF401 - what came before a failure counts
        except (EngineFailed, Diverged) as failure:
            return b"".join(out), failure
        return b"".join(out), None
