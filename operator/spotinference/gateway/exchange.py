"""One request from arrival to its last byte: wait for a replica, try, try another after a failure.

What all requests do is here. How an answer is read, and what is sent after one was lost, is the
matter of the subclasses: `whole` (one JSON object), `streamed` (chunks, also those that are gathered
into one object) and `response_stream` (the Responses API's events).
"""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod

import structlog
from aiohttp import web

from spotinference import logs
from spotinference.api.keys import ApiKey
from spotinference.core.account import Account
from spotinference.core.continuation import Prepared
from spotinference.core.evacuation import Progress
from spotinference.core.routing import Work
from spotinference.core.splice import Diverged, EngineFailed
from spotinference.core.stream import EventTooLong
from spotinference.gateway import errors, refusals
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
from spotinference.gateway.messages import Request
from spotinference.gateway.replicas import Replica
from spotinference.gateway.reply import Reply
from spotinference.gateway.search import Search
from spotinference.gateway.trace import Trace
from spotinference.gateway.waiting import Waiting

log = structlog.get_logger(__name__)

KEEP_ALIVE = b": keep-alive\n\n"
STOPPING = "the gateway is stopping"
NOT_TAKEN = (Unreachable, Busy, Draining)
"""The engine did nothing for the attempt."""
FAILURES = (*NOT_TAKEN, Lost, Failed, Refused, EngineFailed, EventTooLong)


class Exchange(ABC):
    __slots__ = (
        "_arrived",
        "_attempts",
        "_context",
        "_id",
        "_key",
        "_losses",
        "_lost_at",
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
        http: Request,
        tier: Tier,
        prepared: Prepared,
        work: Work,
        *,
        key: ApiKey,
        body_bytes: int,
        reply: Reply | None = None,
    ) -> None:
        self._context = context
        self._prepared = prepared
        self._key = key
        self._id = http.request_id
        self._reply = reply or Reply(http, context.settings, http.request_id)
        self._reply.headers["x-spotinference-continuation"] = prepared.kind
        context.metrics.classes.labels(prepared.kind).inc()
        self.account = Account(prepared.kind)
        """what the answer took; complete when `run` has returned or raised"""
        self._arrived = time.monotonic()
        ticket = context.parking.ticket(context.clock.now(), body_bytes, key.id)
        self._waiting = Waiting(
            context, tier, self._reply, ticket, self._empty, key=key, stream=prepared.stream
        )
        self._lost_at: float | None = None
        self._search = Search(context, self._waiting, work)
        self._attempts = 0
        self._refusals = 0
        """of these attempts, those that a full queue turned away"""
        self._losses = 0
        self.trace = Trace()
        self._begun()

    # --- what is different for each kind --------------------------------------------------------

    def _begun(self) -> None:  # noqa: B027  # a kind may keep nothing
        """What this kind of answer keeps, made when the request has come."""

    @abstractmethod
    async def _give(self) -> web.StreamResponse:
        """The answer, to its end."""

    @abstractmethod
    async def _attempt(self, replica: Replica) -> None:
        """Returns when the answer is complete; raises one of `FAILURES`, or `Diverged`."""

    @abstractmethod
    def progress(self) -> Progress:
        """How far the answer is, for the decision whether it leaves a replica with a notice."""

    def _diverged(self, error: Diverged) -> None:
        """The replica repeated another answer; returns when another attempt may mend that."""
        raise GatewayError(
            Code.CONTINUATION_DIVERGED, f"The answer cannot be continued: {error}."
        ) from error

    async def _carry_on(self) -> bool:
        """Readies the next attempt after a failed one; True: there is nothing left to ask for."""
        return False

    def _delivered_anything(self) -> bool:
        """What a client has of the answer, another replica must repeat or continue."""
        return False

    def _empty(self) -> bytes:
        """What counts as a sign of life for clients that look at parsed events only."""
        return KEEP_ALIVE

    # --- the way of a request -------------------------------------------------------------------

    async def run(self) -> web.StreamResponse:
        """Answers; a `GatewayError` after the first byte becomes an event and an abort."""
        try:
            return await self._give()
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
            if self.account.first_token_at is not None:
                self._context.turns.live -= self._prepared.stream
            self._waiting.over()
            self._settle_account()

    def _settle_account(self) -> None:
        self.account.attempts = self._attempts

    @property
    def aborted(self) -> bool:
        return self._reply.aborted

    async def _until_done(self) -> None:
        """One attempt after another, until the answer is complete."""
        while True:
            replica = self._search.at_once() or await self._search.replica()
            try:
                return await self._attempt(replica)
            except Diverged as error:
                self.trace.ended("diverged", delivered=self._delivered_tokens())
                self._diverged(error)
            except FAILURES as failure:
                await self._failed(replica, failure)
                if isinstance(failure, NOT_TAKEN):
                    continue  # what was to be asked for is so still
            if await self._carry_on():
                return None

    async def _until_whole(self) -> None:
        """The same for an answer of which nothing is sent before it is whole.

        Its client may see spaces meanwhile.
        """
        if not self._key.keep_alive:
            return await self._until_done()
        settings = self._context.settings
        self._reply.keep_alive(settings.fail_fast_s, settings.heartbeat_s)
        try:
            return await self._until_done()
        finally:
            await self._reply.still()

    def _attempt_id(self, replica: Replica) -> str:
        """The engine's id of this attempt: two attempts must not meet as one on a replica."""
        self._attempts += 1
        name = self._id if self._attempts == 1 else f"{self._id}-{self._attempts}"
        account = self.account
        self.trace.started(
            replica, name, parked_s=self._waiting.parked_s,
            replayed=account.replayed_tokens + account.replayed_prompt_tokens,
        )  # fmt: skip
        return name

    def _began(self, replica: Replica) -> None:
        """The first new bytes of an attempt are about to go to the client."""
        self._search.found(replica)
        self.account.replica = replica.name
        self._waiting.since = None
        self._losses = 0
        self._first_byte()
        if self._lost_at is None:
            return
        self.account.continuations += 1
        stalled_s = time.monotonic() - self._lost_at
        ref = self._waiting.tier.ref
        self._context.metrics.stall_seconds.labels(ref.name).observe(stalled_s)
        self._lost_at = None
        log.info(
            "answer.continued", tier=str(ref), id=self._id, pod=replica.name,
            stalled_s=round(stalled_s, 3),
        )  # fmt: skip

    def _first_byte(self) -> None:
        now = time.monotonic()
        if self.account.first_token_at is None:
            self.account.first_token_at = now
            self._context.turns.live += self._prepared.stream
        if not self._reply.begun:
            self._context.metrics.first_byte_seconds.labels(self._waiting.tier.ref.name).observe(
                now - self._arrived
            )

    def _delivered_tokens(self) -> int:
        """Generated tokens that the client has."""
        return 0

    def _again(self, tokens: int, prompt_tokens: int) -> None:
        """Work that a loss makes engines do twice."""
        tier, metrics = self._waiting.tier.ref.name, self._context.metrics
        metrics.replayed_tokens.labels(tier).inc(tokens)
        metrics.replayed_prompt_tokens.labels(tier).inc(prompt_tokens)
        self.account.replayed_tokens += tokens
        self.account.replayed_prompt_tokens += prompt_tokens

    def _cut_short(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """An answer that ended before its engine's count: what is known of it, else an estimate."""
        if prompt_tokens is None and completion_tokens:
            prompt_tokens = self._search.work.prompt_tokens
        self.account.prompt_tokens = prompt_tokens
        self.account.completion_tokens = completion_tokens

    # --- failures -------------------------------------------------------------------------------

    async def _failed(self, replica: Replica, failure: Exception) -> None:
        """Returns when another attempt may be made; raises what the client is told."""
        if isinstance(failure, NOT_TAKEN):
            self.trace.not_taken()
        else:
            self.trace.ended(type(failure).__name__.lower(), delivered=self._delivered_tokens())
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
