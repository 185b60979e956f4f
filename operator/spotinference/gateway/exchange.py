"""One request from arrival to its last byte: wait for a replica, try, carry on after a loss.

`Exchange.run` is the way of every request; what a loss means is decided in `core.continuation`.
"""

from __future__ import annotations

import asyncio
import random
import time

import orjson
import structlog
from aiohttp import web

from spotinference import logs
from spotinference.api.keys import ApiKey
from spotinference.api.kinds import Json
from spotinference.clients.engine_http import Answer, Broken
from spotinference.core import assembly, chunks, continuation, routing
from spotinference.core.account import Account
from spotinference.core.continuation import Class, Ending, Next, Prepared, Refusal
from spotinference.core.delivered import Delivered
from spotinference.core.evacuation import Progress
from spotinference.core.splice import Diverged, EngineFailed, Splice
from spotinference.core.stream import EventTooLong, Framer, events
from spotinference.gateway import engines, errors, refusals
from spotinference.gateway.attempt import Attempt
from spotinference.gateway.catalogue import Tier
from spotinference.gateway.context import Context
from spotinference.gateway.engines import (
    Busy,
    Draining,
    Failed,
    Lost,
    Moved,
    Refused,
    Unreachable,
)
from spotinference.gateway.errors import Code, GatewayError
from spotinference.gateway.replicas import Replica
from spotinference.gateway.reply import Reply
from spotinference.gateway.search import Search
from spotinference.gateway.trace import Trace
from spotinference.gateway.waiting import Waiting

log = structlog.get_logger(__name__)


class Exchange:
    __slots__ = (
        "_arrived",
        "_attempts",
        "_context",
        "_delivered",
        "_flows",
        "_id",
        "_key",
        "_losses",
        "_lost_at",
        "_moving",
        "_open",
        "_out",
        "_prepared",
        "_refusals",
        "_reply",
        "_search",
        "_waiting",
        "account",
        "trace",
    )

    def __init__(
        self,
        context: Context,
        http: web.BaseRequest,
        tier: Tier,
        prepared: Prepared,
        *,
        key: ApiKey,
        request_id: str,
        body_bytes: int,
        reply: Reply | None = None,
    ) -> None:
        self._context = context
        self._prepared = prepared
        self._key = key
        self._id = request_id
        self._reply = reply or Reply(http, context.settings, request_id)
        self._reply.headers["x-spotinference-continuation"] = prepared.kind.value
        context.metrics.classes.labels(prepared.kind.value).inc()
        self.account = Account(prepared.kind)
        """what the answer took; complete when `run` has returned or raised"""
        self._delivered = Delivered(prepared.endpoint)
        self._out: Reply | Silence = self._reply
        """where the chunks of the answer go"""
        if prepared.gathered:
            self._out = Silence(context.settings.max_answer_bytes)
            self._delivered.raw_limit = GATHERED_RAW_BYTES
        self._arrived = time.monotonic()
        ticket = context.parking.ticket(context.clock.now(), body_bytes, key.id)
        self._waiting = Waiting(
            context, tier, prepared, self._delivered, self._reply, ticket, key=key
        )
        self._lost_at: float | None = None
        work = routing.work_of(prepared.body, http.headers.get(SESSION_HEADER))
        self._search = Search(context, self._waiting, work)
        self._open: Attempt | None = None
        """the attempt that is being read"""
        self._moving = False
        """this attempt was left before its replica goes"""
        self._flows = (self._arrived, 0)
        """since when the attempt gives tokens, and how many there were before"""
        self._attempts = 0
        self._refusals = 0
        """of these attempts, those that a full queue turned away"""
        self._losses = 0
        self.trace = Trace()

    # --- the way of a request -------------------------------------------------------------------

    async def run(self) -> web.StreamResponse:
        """Answers; a `GatewayError` after the first byte becomes an event and an abort."""
        try:
            if not self._prepared.stream:
                return await self._plain_kept_alive()
            await self._stream()
            return await self._reply.finish()
        except GatewayError as error:
            if not self._reply.begun:
                raise
            log.warning(
                "answer.aborted", tier=str(self._waiting.tier.ref), id=self._id, code=error.code.wire,
                error=error.logged,
            )  # fmt: skip
            return await self._reply.abort(error)
        except asyncio.CancelledError as cancelled:
            if cancelled.args != (STOPPING,):
                raise  # the client is gone
            if not self._reply.begun:
                raise errors.stopping() from cancelled
            return await self._reply.abort(errors.stopping())
        except ConnectionError:
            raise  # the client is gone
        except Exception as error:
            if not self._reply.begun:
                raise
            self._context.metrics.bugs.inc()
            log.error("answer.bug", id=self._id, bug=logs.where(error))  # noqa: TRY400
            return await self._reply.abort(GatewayError(Code.INTERNAL_ERROR, "Internal error."))
        finally:
            self._settle_account()

    def _settle_account(self) -> None:
        account = self.account
        account.attempts = self._attempts
        if self._delivered.usage is not None:
            account.use(self._delivered.usage)
        elif account.completion_tokens is None:  # cut short, or from an engine that does not tell
            account.prompt_tokens, account.completion_tokens = self._delivered.counted()

    @property
    def aborted(self) -> bool:
        return self._reply.aborted

    async def _plain_kept_alive(self) -> web.StreamResponse:
        settings = self._context.settings
        if self._key.keep_alive:
            self._reply.keep_alive(settings.fail_fast_s, settings.heartbeat_s)
        try:
            return await self._plain()
        finally:
            await self._reply.still()

    async def _plain(self) -> web.StreamResponse:
        """Nothing is sent before the answer is whole, so every failure may be tried elsewhere."""
        if self._prepared.gathered:
            answer = await self._gather()
        else:
            answer = await self._fetched()
        return await self._reply.send(answer)

    async def _gather(self) -> bytes:
        """Streamed from the engines, so that a loss costs no more than it costs a stream."""
        await self._stream()
        self._delivered.settle()
        if self._delivered.usage is None:
            raise GatewayError(Code.ENGINE_FAILED, "The engine reported no usage.")
        return assembly.whole(self._prepared.endpoint, self._delivered)

    async def _fetched(self) -> bytes:
        while True:
            replica = await self._search.replica()
            body = orjson.dumps(self._prepared.body)  # not before: it may be parked for minutes
            try:
                answer = await self._fetch(replica, body)
            except FAILURES as failure:
                await self._failed(replica, failure)
                continue
            self._first_byte()
            self.trace.token()
            return answer

    async def _fetch(self, replica: Replica, body: bytes) -> bytes:
        limit = self._context.settings.max_answer_bytes
        answer = bytearray()
        async with self._context.engines.answer(
            replica, self._prepared.endpoint, body, request_id=self._attempt_id(replica), stream=False,
            work=self._search.work,
        ) as attempt:  # fmt: skip
            response = self._opened(attempt)
            try:
                while part := await response.part():
                    self._expect_more()
                    answer += part
                    if len(answer) > limit:
                        raise Failed(f"an answer of more than {limit} bytes")
            except Broken as error:
                raise Lost(f"{replica.name}: {type(error).__name__}: {error}") from error
            # A cut answer may look like a whole one to HTTP.
            if (decoded := chunks.decode(bytes(answer))) is None:
                raise Lost(f"{replica.name}: the answer is not whole")
            choices = decoded.get("choices") or ()
            if any(c.get("finish_reason") in {"abort", "error"} for c in choices):
                raise Lost(f"{replica.name}: the engine aborted the answer")
        if isinstance(usage := decoded.get("usage"), dict):
            self.account.use(usage)
        return bytes(answer)

    async def _stream(self) -> None:
        request: Next | None = None
        whole = False
        while True:
            replica = await self._search.replica()
            try:
                await self._attempt(replica, request)
            except Diverged as error:
                if whole or request is None or request.kind is not Class.TOKEN:
                    self._count(request, "diverged")
                    raise GatewayError(
                        Code.CONTINUATION_DIVERGED, f"The answer cannot be continued: {error}."
                    ) from error
                whole = True
            except FAILURES as failure:
                await self._failed(replica, failure)
            else:
                return
            if not self._delivered_anything():
                continue
            match continuation.plan(self._prepared, self._delivered, whole=whole):
                case Ending(rest):
                    await self._out.write(rest)
                    return
                case Refusal(reason):
                    self._context.metrics.continuations.labels("refused", "refused").inc()
                    raise GatewayError(
                        Code.NOT_CONTINUABLE,
                        f"The replica was lost and the answer cannot be continued: {reason}.",
                    )
                case Next() as request:
                    self._again(request.repeated_tokens, request.prompt_tokens)

    def _again(self, tokens: int, prompt_tokens: int) -> None:
        """Work that a loss makes engines do twice."""
        tier, metrics = self._waiting.tier.ref.name, self._context.metrics
        metrics.replayed_tokens.labels(tier).inc(tokens)
        metrics.replayed_prompt_tokens.labels(tier).inc(prompt_tokens)
        self.account.replayed_tokens += tokens
        self.account.replayed_prompt_tokens += prompt_tokens

    def _delivered_anything(self) -> bool:
        """Chunks of the engine, or a chunk of ours that fixed the answer's id."""
        self._delivered.settle()
        return self._delivered.identity is not None or self._delivered.substance

    # --- one attempt ----------------------------------------------------------------------------

    def _attempt_id(self, replica: Replica) -> str:
        """The engine's id of this attempt: two attempts must not meet as one on a replica."""
        self._attempts += 1
        name = self._id if self._attempts == 1 else f"{self._id}-{self._attempts}"
        self.trace.started(
            replica, name, parked_s=self._search.parked_s,
            replayed=self.account.replayed_tokens + self.account.replayed_prompt_tokens,
        )  # fmt: skip
        return name

    async def _attempt(self, replica: Replica, request: Next | None) -> None:
        """Returns when the answer is complete."""
        body = self._prepared.body
        if request is not None:
            body = request.body
            if request.needs_max_tokens:
                limit = self._waiting.tier.spec.engine.max_model_len
                if limit is None:
                    limit = await self._context.engines.max_model_len(replica)
                body = continuation.with_max_tokens(request, limit)
        path = request.path if request is not None else self._prepared.endpoint.value
        async with self._context.engines.answer(
            replica, path, orjson.dumps(body), request_id=self._attempt_id(replica), stream=True,
            work=self._search.work, patience=self._waiting.first_part,
        ) as attempt:  # fmt: skip
            response = self._opened(attempt)
            replica.answers.add(self)
            try:
                if request is None and self._waiting.who is None:
                    await self._relay(replica, response)
                else:
                    await self._splice(replica, response, request)
            except Broken as error:
                if self._moving:
                    raise Moved(f"{replica.name} has a notice") from error
                raise Lost(f"{replica.name}: {type(error).__name__}: {error}") from error
            finally:
                replica.answers.discard(self)
                self._moving = False

    def progress(self) -> Progress:
        """How far the answer is, for the decision whether it leaves a replica with a notice."""
        prepared, delivered = self._prepared, self._delivered
        delivered.settle()
        tokens = delivered.tokens // prepared.choices
        since, before = self._flows
        limit = continuation.max_tokens(prepared)
        context = self._waiting.tier.spec.engine.max_model_len
        if limit is None and context is not None and delivered.prompt_ids is not None:
            limit = context - len(delivered.prompt_ids)
        fresh = tokens - before
        return Progress(
            movable=prepared.kind in {Class.TOKEN, Class.REPLAY} and not self._moving,
            repeats=prepared.kind is Class.REPLAY,
            tokens=tokens,
            tokens_left=None if limit is None else max(0, limit - tokens),
            tokens_per_s=fresh / max(time.monotonic() - since, 1e-3) if fresh > 0 else None,
        )

    def move(self) -> None:
        """Ends the running attempt as if its replica were gone; the answer goes on elsewhere."""
        if self._open is not None and not self._delivered.done:
            self._moving = True
            self._open.drop()

    async def _relay(self, replica: Replica, response: Answer) -> None:
        """The way of every token: whole events, their bytes as they are but for hidden ids.

        Once the answer flows, a chunk goes from the engine's socket to the client's without a
        task switch; this task only wakes for what ends the answer, and for a slow client.
        """
        framer = Framer()
        reply, delivered, trace = self._out, self._delivered, self.trace
        hide = self._prepared.hide_token_ids
        first, held = True, b""

        def take(data: bytes) -> bool:
            nonlocal held
            whole = framer.feed(data)
            if not whole:
                return True
            if first or not chunks.ordinary(whole):
                held = whole
                return False
            delivered.record(whole)
            trace.token()
            return reply.push(chunks.hide_token_ids(whole) if hide else whole)

        while not await response.pipe(take):
            whole, held = held, b""
            if not whole:
                await reply.drain()
                continue
            if first:
                self._expect_more()
            if not chunks.ordinary(whole):
                # [DONE] is not: it ends the answer or it does not
                await self._with_care(replica, whole)
                if delivered.done:
                    await engines.to_the_end(response)
                    return
                continue
            if first:
                first = False
                await self._began(replica)
            await self._forward(whole)
        delivered.settle()
        if not delivered.done:
            raise Lost(f"{replica.name}: the stream ended without [DONE]")

    async def _forward(self, raw: bytes) -> None:
        self._delivered.record(raw)
        await self._out.write(chunks.hide_token_ids(raw) if self._prepared.hide_token_ids else raw)
        self.trace.token()

    async def _with_care(self, replica: Replica, whole: bytes) -> None:
        """Events that end the answer, or among which an engine's error may be.

        What comes before an error is the client's; a [DONE] only goes out after a finish_reason.
        """
        good: list[bytes] = []
        failure: EngineFailed | None = None
        done = False
        for event in events(whole):
            if event.data is None:
                good.append(KEEP_ALIVE)
                continue
            if event.data == chunks.DONE_DATA:
                done = True  # whatever follows it is no part of the answer
                break
            chunk = chunks.decode(event.data)
            failure = _failure_in(chunk)
            if failure is not None:
                break
            if chunk is not None and not self._shown(chunk):
                continue
            good.append(b"data: " + event.data + b"\n\n")
        if any(raw is not KEEP_ALIVE for raw in good):
            await self._began(replica)
            self._delivered.record(b"".join(good))
        if done and not self._delivered.finished(self._prepared.choices):
            failure, done = EngineFailed({}, "[DONE] without a finish_reason"), False
        self._delivered.done = done
        if good or done:
            out = b"".join(good) + (chunks.DONE if done else b"")
            await self._out.write(
                chunks.hide_token_ids(out) if self._prepared.hide_token_ids else out
            )
            self.trace.token()
        if failure is not None:
            raise failure

    def _shown(self, chunk: Json) -> bool:
        """Whether the client gets this chunk: not the usage that only we asked for."""
        if chunk.get("choices") or not chunk.get("usage"):
            return True
        self._delivered.usage = chunk["usage"]
        return self._prepared.include_usage

    async def _splice(self, replica: Replica, response: Answer, request: Next | None) -> None:
        """Chunks of another replica become chunks of this answer."""
        framer = Framer()
        splice = Splice(self._prepared, self._delivered, request, self._waiting.who)
        first = True
        heartbeat_s = self._context.settings.heartbeat_s
        beat_at = time.monotonic() + heartbeat_s
        async for data in response.parts():
            if first:
                self._expect_more()
            for event in events(framer.feed(data)):
                if event.data is None:
                    continue
                out = splice.feed(event.data)
                if not out:  # a replay may take as long as the answer did so far
                    if self._out.begun and time.monotonic() >= beat_at:
                        beat_at = time.monotonic() + heartbeat_s
                        await self._out.write(KEEP_ALIVE)
                    continue
                if first:
                    first = False
                    await self._began(replica)
                    self._count(request, "continued")
                await self._out.write(out)
                self.trace.token()
                if self._delivered.done:
                    await engines.to_the_end(response)
                    return
        raise Lost(f"{replica.name}: the stream ended without [DONE]")

    def _opened(self, attempt: Attempt) -> Answer:
        self._open = attempt
        assert attempt.answer is not None
        return attempt.answer

    def _expect_more(self) -> None:
        """The engine has begun to speak: from now on silence means that it is lost."""
        if self._open is not None:
            self._open.first_byte()

    async def _began(self, replica: Replica) -> None:
        """The first new bytes of an attempt are about to go to the client."""
        self._search.found(replica)
        self.account.replica = replica.name
        self._flows = (time.monotonic(), self._delivered.tokens // self._prepared.choices)
        self._waiting.since = None
        self._losses = 0
        self._first_byte()
        if self._lost_at is not None:
            self.account.continuations += 1
            stalled_s = time.monotonic() - self._lost_at
            self._context.metrics.stall_seconds.labels(self._waiting.tier.ref.name).observe(
                stalled_s
            )
            self._lost_at = None
            log.info(
                "answer.continued", tier=str(self._waiting.tier.ref), id=self._id, pod=replica.name,
                stalled_s=round(stalled_s, 3),
            )  # fmt: skip
        if not self._out.begun:
            await self._out.begin()

    def _first_byte(self) -> None:
        if self.account.first_token_at is None:
            self.account.first_token_at = time.monotonic()
        if not self._reply.begun:
            self._context.metrics.first_byte_seconds.labels(self._waiting.tier.ref.name).observe(
                time.monotonic() - self._arrived
            )

    def _count(self, request: Next | None, outcome: str) -> None:
        kind = request.kind.value if request is not None else Class.RESTART.value
        self._context.metrics.continuations.labels(kind, outcome).inc()

    # --- failures -------------------------------------------------------------------------------

    async def _failed(self, replica: Replica, failure: Exception) -> None:
        """Returns when another attempt may be made; raises what the client is told."""
        if isinstance(failure, Unreachable | Busy | Draining):
            self.trace.not_taken()
        else:
            _, delivered = self._delivered.counted()
            self.trace.ended(type(failure).__name__.lower(), delivered=delivered or 0)
        if isinstance(failure, Busy):  # a search among full queues has an end of its own
            self._search.busy(replica)
            self._refusals += 1
            return
        if self._attempts - self._refusals >= self._context.settings.max_attempts:
            raise GatewayError(
                Code.UPSTREAM_LOST, f"Gave up after {self._attempts} attempts: {failure}"
            ) from failure
        match failure:
            case Unreachable():
                self._context.engines.eject(replica)
            case Draining():
                self._context.engines.eject(replica, pause_s=self._context.settings.eject_max_s)
            case Refused():
                raise self._refused(failure) from failure
            case EngineFailed(client_error=True):
                raise refusals.in_stream(
                    self._prepared.endpoint, self._waiting.tier.names[0], failure.error
                ) from failure
            case _:
                await self._lost(replica, failure)

    async def _lost(self, replica: Replica, failure: Exception) -> None:
        self._losses += 1
        self._search.failed(replica, failure)
        if self._waiting.since is None:  # bytes had been delivered: a new wait begins
            self._waiting.since = self._lost_at = time.monotonic()
            if not isinstance(failure, Moved):
                self._context.metrics.interruptions.labels(self._waiting.tier.ref.name).inc()
        else:  # at work on the answer, not waiting: that time does not count against the cap
            self._waiting.since += time.monotonic() - self._search.found_at
        if isinstance(failure, Moved):
            self._losses -= 1  # by our own will: it says nothing about the request
            log.info(
                "answer.moves", tier=str(self._waiting.tier.ref), id=self._id, pod=replica.name
            )
            return
        log.warning(
            "replica.lost", tier=str(self._waiting.tier.ref), id=self._id, pod=replica.name,
            losses=self._losses, error=str(failure)[:300],
        )  # fmt: skip
        if self._losses > self._context.settings.max_losses:
            code = Code.ENGINE_FAILED if isinstance(failure, Failed) else Code.UPSTREAM_LOST
            raise GatewayError(
                code, f"{self._losses} replicas failed on this request, the last: {failure}"
            ) from failure
        if self._losses > 1:
            await asyncio.sleep(random.uniform(0, 0.05 * 2**self._losses))

    def _refused(self, failure: Refused) -> GatewayError:
        error = refusals.refusal(
            self._prepared.endpoint, self._waiting.tier.names[0], failure.status, failure.body
        )
        if not self._delivered_anything():
            return error
        return GatewayError(
            Code.NOT_CONTINUABLE,
            f"The new replica refused the continuation: {error.message}",
            quotes_request=True,
        )


class Silence:
    """Takes the chunks of an answer that is sent when it is whole; `Delivered` keeps them."""

    begun = False

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._taken = 0

    async def begin(self) -> None:
        return

    def push(self, data: bytes) -> bool:
        self._taken += len(data)
        if self._taken > self._limit:
            raise GatewayError(Code.ENGINE_FAILED, f"An answer of more than {self._limit} bytes.")
        return True

    async def drain(self) -> None:
        return

    async def write(self, data: bytes) -> None:
        self.push(data)


GATHERED_RAW_BYTES = 16 * 1024
"""Parsed bit by bit while it comes: at the end there is no pause for all of it."""
SESSION_HEADER = "x-session-id"
"""A client's own name for what belongs together: goes to one replica while that has room."""
KEEP_ALIVE = b": keep-alive\n\n"
STOPPING = "the gateway is stopping"
FAILURES = (Unreachable, Busy, Draining, Lost, Failed, Refused, EngineFailed, EventTooLong)


def _failure_in(chunk: Json | None) -> EngineFailed | None:
    """The error that a chunk of the engine is, or the abort that it reports."""
    if chunk is None:
        return EngineFailed({}, "a chunk that is not JSON")
    if (error := chunks.error_of(chunk)) is not None:
        return EngineFailed(error)
    choices = chunk.get("choices") or ()
    if any(choice.get("finish_reason") in {"abort", "error"} for choice in choices):
        return EngineFailed({})
    return None
