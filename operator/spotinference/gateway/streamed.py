"""Streams of chunks (chat and completions): relayed as they come, spliced together after a loss.

What a loss means is decided in `core.continuation`; chunks of another replica become chunks of this
answer in `core.splice`. `Gathered` asks the engine for a stream, too, but sends one JSON object.
"""

from __future__ import annotations

import time

import orjson
from aiohttp import web

from spotinference.api.kinds import Json
from spotinference.clients.engine_http import Answer, Broken
from spotinference.core import assembly, chunks, continuation
from spotinference.core.chunks import Identity
from spotinference.core.continuation import Class, Ending, Next, Refusal
from spotinference.core.delivered import Delivered
from spotinference.core.evacuation import Progress
from spotinference.core.splice import Diverged, EngineFailed, Splice
from spotinference.core.stream import Framer, events
from spotinference.gateway import engines
from spotinference.gateway.attempt import Attempt
from spotinference.gateway.engines import Lost
from spotinference.gateway.errors import Code, GatewayError
from spotinference.gateway.exchange import KEEP_ALIVE, Exchange
from spotinference.gateway.flow import Flow
from spotinference.gateway.replicas import Replica
from spotinference.gateway.reply import Reply

GATHERED_RAW_BYTES = 16 * 1024
"""Parsed bit by bit while it comes: at the end there is no pause for all of it."""


class Streamed(Exchange):
    __slots__ = ("_delivered", "_flows", "_next", "_out", "_who", "_whole")

    def _begun(self) -> None:
        self._delivered = Delivered(self._prepared.endpoint)
        self._out: Reply | Silence = self._reply
        """where the chunks of the answer go"""
        self._next: Next | None = None
        """what carries the answer on; None: the request as it came"""
        self._whole = False
        """a token prompt diverged: what is left to try is a replay from the beginning"""
        self._who: Identity | None = None
        """set when a chunk of ours had to go out before the engine's first"""
        self._flows = (self._arrived, 0)
        """since when the attempt gives tokens, and how many there were before"""

    async def _give(self) -> web.StreamResponse:
        await self._until_done()
        return await self._reply.finish()

    def _settle_account(self) -> None:
        super()._settle_account()
        account = self.account
        if self._delivered.usage is not None:
            account.use(self._delivered.usage)
        elif account.completion_tokens is None:  # cut short, or from an engine that does not tell
            self._cut_short(*continuation.counted(self._prepared, self._delivered))

    # --- after a loss ---------------------------------------------------------------------------

    def _diverged(self, error: Diverged) -> None:
        request = self._next
        if self._whole or request is None or request.kind is not Class.TOKEN:
            self._count(request, "diverged")
            super()._diverged(error)
        self._whole = True

    async def _carry_on(self) -> bool:
        if not self._delivered_anything():
            return False
        match continuation.plan(self._prepared, self._delivered, whole=self._whole):
            case Ending(rest):
                await self._out.write(rest)
                return True
            case Refusal(reason):
                self._context.metrics.continuations.labels("refused", "refused").inc()
                raise GatewayError(
                    Code.NOT_CONTINUABLE,
                    f"The replica was lost and the answer cannot be continued: {reason}.",
                )
            case Next() as request:
                self._next = request
                self._again(request.repeated_tokens, request.prompt_tokens)
                return False

    def _delivered_anything(self) -> bool:
        """Chunks of the engine, or a chunk of ours that fixed the answer's id."""
        self._delivered.settle()
        delivered = self._delivered
        return delivered.identity is not None or delivered.substance or delivered.unreadable

    def _delivered_tokens(self) -> int:
        return continuation.counted(self._prepared, self._delivered)[1] or 0

    def _count(self, request: Next | None, outcome: str) -> None:
        kind = request.kind.value if request is not None else Class.RESTART.value
        self._context.metrics.continuations.labels(kind, outcome).inc()

    # --- signs of life --------------------------------------------------------------------------

    def _empty(self) -> bytes:
        return chunks.empty_chunk(self._prepared.endpoint, self._identity())

    def _identity(self) -> Identity:
        """The answer's own; made here when a chunk must go out before the engine's first."""
        self._delivered.settle()
        if self._delivered.identity is not None:
            return self._delivered.identity
        if self._who is None:
            self._who = Identity(
                id=self._prepared.endpoint.id_prefix + self._id,
                created=int(self._context.clock.now().timestamp()),
                model=self._waiting.tier.names[0],
            )
        return self._who

    # --- leaving a replica that has a notice ----------------------------------------------------

    def progress(self) -> Progress:
        prepared, delivered = self._prepared, self._delivered
        delivered.settle()
        tokens = delivered.tokens // prepared.choices
        since, before = self._flows
        limit = continuation.max_tokens(prepared)
        context = self._waiting.tier.context_window
        if limit is None and context is not None and delivered.prompt_ids is not None:
            limit = context - len(delivered.prompt_ids)
        fresh = tokens - before
        return Progress(
            movable=not (delivered.done or delivered.unreadable)
            and (prepared.kind in {Class.TOKEN, Class.REPLAY} or not delivered.substance),
            repeats=prepared.kind is Class.REPLAY,
            tokens=tokens,
            tokens_left=None if limit is None else max(0, limit - tokens),
            tokens_per_s=fresh / max(time.monotonic() - since, 1e-3) if fresh > 0 else None,
        )

    # --- one attempt ----------------------------------------------------------------------------

    async def _attempt(self, replica: Replica) -> None:
        request = self._next
        path = request.path if request is not None else self._prepared.endpoint.value
        body = orjson.dumps(await self._body(replica))
        asked = self._context.engines
        name = self._attempt_id(replica)
        with asked.attempt(replica, self._search.work, self, stream=True) as attempt:
            answer = await asked.ask(
                attempt, path, body, request_id=name,
                patience=self._waiting.first_part,
            )  # fmt: skip
            try:
                if request is None and self._who is None:
                    await self._relay(replica, attempt, answer)
                else:
                    await self._splice(replica, attempt, answer, request)
            except Broken as error:
                raise Lost(f"{replica.name}: {type(error).__name__}: {error}") from error

    async def _body(self, replica: Replica) -> Json:
        request = self._next
        if request is None:
            return self._prepared.body
        if not request.needs_max_tokens:
            return request.body
        limit = self._waiting.tier.spec.engine.max_model_len
        if limit is None:
            limit = await self._context.engines.max_model_len(replica)
        return continuation.with_max_tokens(request, limit)

    async def _relay(self, replica: Replica, attempt: Attempt, answer: Answer) -> None:
        """The way of every token: whole events, their bytes as they are but for hidden ids.

        Once the answer flows, a chunk goes from the engine's socket to the client's without a
        task switch; this task only wakes for what ends the answer, and for a slow client.
        """
        reply, delivered = self._out, self._delivered
        flow = Flow(reply, delivered, self.trace.attempts[-1], hide=self._prepared.hide_token_ids)
        while not await answer.pipe(flow.take):
            whole = flow.held()
            if not whole:
                await reply.drain()
                continue
            if not flow.open:
                attempt.first_byte()
            if not chunks.ordinary(whole):
                # [DONE] is not: it ends the answer or it does not
                await self._with_care(replica, whole)
                if delivered.done:
                    await engines.to_the_end(answer)
                    return
                continue
            if not flow.open:
                self._flow(replica)
                flow.open = True
            await reply.write(flow.passing(whole))
        delivered.settle()
        if not delivered.done:
            raise Lost(f"{replica.name}: the stream ended without [DONE]")

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
            good.append(chunks.event(event.data))
        if any(raw is not KEEP_ALIVE for raw in good):
            self._flow(replica)
            self._delivered.record(b"".join(good))
        if done and not self._delivered.finished(self._prepared.choices):
            failure, done = EngineFailed({}, "[DONE] without a finish_reason"), False
        self._delivered.done = done
        if good or done:
            out = b"".join(good) + (chunks.DONE if done else b"")
            shown = chunks.hide_token_ids(out) if self._prepared.hide_token_ids else out
            await (self._out.last(shown) if done else self._out.write(shown))
            self.trace.token()
        if failure is not None:
            raise failure

    def _shown(self, chunk: Json) -> bool:
        """Whether the client gets this chunk: not the usage that only we asked for."""
        if chunk.get("choices") or not chunk.get("usage"):
            return True
        self._delivered.usage = chunk["usage"]
        return self._prepared.include_usage

    async def _splice(
        self, replica: Replica, attempt: Attempt, answer: Answer, request: Next | None
    ) -> None:
        """Chunks of another replica become chunks of this answer."""
        framer = Framer()
        splice = Splice(self._prepared, self._delivered, request, self._who)
        first = True
        heartbeat_s = self._context.settings.heartbeat_s
        beat_at = time.monotonic() + heartbeat_s
        async for data in answer.parts():
            if first:
                attempt.first_byte()
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
                    self._flow(replica)
                    self._count(request, "continued")
                await self._out.write(out)
                self.trace.token()
                if self._delivered.done:
                    await engines.to_the_end(answer)
                    return
        raise Lost(f"{replica.name}: the stream ended without [DONE]")

    def _flow(self, replica: Replica) -> None:
        """The first new bytes of an attempt are about to go to the client."""
        self._flows = (time.monotonic(), self._delivered.tokens // self._prepared.choices)
        self._began(replica)


class Gathered(Streamed):
    """Streamed from the engines, so that a loss costs no more than it costs a stream."""

    __slots__ = ()

    async def _give(self) -> web.StreamResponse:
        self._out = Silence(self._context.settings.max_answer_bytes)
        self._delivered.raw_limit = GATHERED_RAW_BYTES
        await self._until_whole()
        self._delivered.settle()
        if self._delivered.unreadable:
            raise GatewayError(Code.ENGINE_FAILED, "The engine sent what is no chunk.")
        if self._delivered.usage is None:
            raise GatewayError(Code.ENGINE_FAILED, "The engine reported no usage.")
        return await self._reply.send(assembly.whole(self._prepared.endpoint, self._delivered))


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

    async def last(self, data: bytes) -> None:
        self.push(data)


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
