"""A streamed response (`/v1/responses`): its events carry no tokens, so after a loss it is replayed."""

from __future__ import annotations

import time

import orjson
from aiohttp import web

from spotinference.clients.engine_http import Answer as EngineAnswer
from spotinference.clients.engine_http import Broken
from spotinference.core import responses
from spotinference.core.continuation import Class
from spotinference.core.evacuation import Progress
from spotinference.core.responses import Answer
from spotinference.core.splice import Diverged, EngineFailed
from spotinference.core.stream import Framer, events
from spotinference.gateway import engines
from spotinference.gateway.attempt import Attempt
from spotinference.gateway.engines import Lost
from spotinference.gateway.errors import Code, GatewayError
from spotinference.gateway.exchange import KEEP_ALIVE, Exchange
from spotinference.gateway.replicas import Replica


class ResponseStream(Exchange):
    __slots__ = ("_answer", "_flows")

    def _begun(self) -> None:
        self._answer = Answer()
        """what the client has of it"""
        self._flows = (self._arrived, 0)
        """since when the attempt gives events, and how many there were before"""
        self._reply.as_event = self._error_event

    async def _give(self) -> web.StreamResponse:
        await self._until_done()
        return await self._reply.finish()

    def _settle_account(self) -> None:
        super()._settle_account()
        self._reply.as_event = GatewayError.event  # else a cycle with the reply
        if self._answer.usage is not None:
            self.account.use(self._answer.usage)
        else:
            self._cut_short(None, self._answer.deltas or None)

    # --- signs of life, and errors --------------------------------------------------------------

    def _empty(self) -> bytes:
        return self._answer.keep_alive(
            responses.waiting(
                self._prepared.body,
                response_id=f"resp_{self._id}",
                created_at=int(self._context.clock.now().timestamp()),
                model=self._waiting.tier.names[0],
            )
        )

    def _error_event(self, error: GatewayError) -> bytes:
        return responses.error_event(
            error.message,
            kind=error.code.value.type,
            code=error.code.wire,
            param=error.param,
            status=error.status,
            sequence=self._answer.sequence,
        )

    def progress(self) -> Progress:
        """By events: nearly each is a token."""
        answer, (since, before) = self._answer, self._flows
        limit, fresh = self._prepared.body.get("max_output_tokens"), answer.sequence - before
        continuable = self._prepared.kind is Class.REPLAY and answer.replayable
        return Progress(
            movable=not answer.done and (continuable or not answer.began),
            repeats=True,
            tokens=answer.sequence,
            tokens_left=None if limit is None else max(0, limit - answer.sequence),
            tokens_per_s=fresh / max(time.monotonic() - since, 1e-3) if fresh > 0 else None,
        )

    # --- after a loss ---------------------------------------------------------------------------

    def _delivered_anything(self) -> bool:
        return self._answer.began

    def _delivered_tokens(self) -> int:
        return self._answer.deltas

    def _diverged(self, error: Diverged) -> None:
        self._context.metrics.continuations.labels(Class.REPLAY.value, "diverged").inc()
        raise GatewayError(
            Code.CONTINUATION_DIVERGED, f"The response cannot be continued: {error}."
        ) from error

    async def _carry_on(self) -> bool:
        if not self._answer.began:
            return False
        reason = self._prepared.reason
        if self._prepared.kind is Class.REPLAY:
            if self._answer.replayable:
                self._answer.start_replay()
                self._again(self._answer.deltas, self._search.work.prompt_tokens)
                return False
            reason = f"it is longer than {responses.MAX_RAW_BYTES} bytes"
        self._context.metrics.continuations.labels("refused", "refused").inc()
        raise GatewayError(
            Code.NOT_CONTINUABLE,
            f"The replica was lost and the response cannot be continued: {reason}.",
        )

    # --- one attempt ----------------------------------------------------------------------------

    async def _attempt(self, replica: Replica) -> None:
        carried_on = self._answer.began
        asked = self._context.engines
        name = self._attempt_id(replica)
        with asked.attempt(replica, self._search.work, self, stream=True) as attempt:
            answer = await asked.ask(
                attempt, self._prepared.endpoint, orjson.dumps(self._prepared.body),
                request_id=name, patience=self._waiting.first_part,
            )  # fmt: skip
            try:
                await self._read(replica, attempt, answer, carried_on=carried_on)
            except Broken as error:
                raise Lost(f"{replica.name}: {type(error).__name__}: {error}") from error

    async def _read(
        self, replica: Replica, attempt: Attempt, answer: EngineAnswer, *, carried_on: bool
    ) -> None:
        framer = Framer()
        beat_at = time.monotonic() + self._context.settings.heartbeat_s
        first = True
        async for data in answer.parts():
            if first:
                attempt.first_byte()
            out, failure = self._events(framer.feed(data))
            if out:
                if first:
                    first = False
                    self._flow(replica, carried_on=carried_on)
                await self._reply.write(out)
                self.trace.token()
            elif self._reply.begun and time.monotonic() >= beat_at:
                beat_at = time.monotonic() + self._context.settings.heartbeat_s
                await self._reply.write(KEEP_ALIVE)
            if failure is not None:
                raise failure
            if self._answer.done:
                await engines.to_the_end(answer)
                return
        raise Lost(f"{replica.name}: the stream ended before the response did")

    def _flow(self, replica: Replica, *, carried_on: bool) -> None:
        """The first new bytes of an attempt are about to go to the client."""
        self._flows = (time.monotonic(), self._answer.sequence)
        self._began(replica)
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
