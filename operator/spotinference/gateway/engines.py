"""Talks to engine pods: opens an answer, tells apart the ways in which that fails, probes back."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager

import orjson
import structlog

from spotinference.clients import engine_http
from spotinference.clients.engine_http import Answer, Broken, NoConnection, head
from spotinference.clients.engine_pool import Pool
from spotinference.core import ejection, pacing
from spotinference.core.observed import TierRef
from spotinference.core.routing import Work
from spotinference.core.splice import EngineFailed
from spotinference.core.stream import EventTooLong
from spotinference.gateway.attempt import Attempt
from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.metrics import Metrics
from spotinference.gateway.replicas import Asker, Replica, Replicas
from spotinference.gateway.vitals import Vitals

log = structlog.get_logger(__name__)

ENGINE_KEEPALIVE_S = 4.0
"""Below uvicorn's 5 s: a connection that the engine is about to close is not used again."""
END_TIMEOUT_S = 0.05
MAX_ERROR_BYTES = 64 * 1024
MAX_MODELS_BYTES = 1024 * 1024
_SHUTDOWN = b"cannot schedule new futures after shutdown"

Patience = Callable[[Answer], Awaitable[None]]
Spawn = Callable[[Coroutine[None, None, None]], object]


class Unreachable(Exception):
    """No connection: nothing was sent, another replica may be asked."""


class Busy(Exception):
    """The engine's queue is full."""


class Draining(Exception):
    """The engine is shutting down and takes nothing new (vLLM says so with a 500)."""


class Lost(Exception):
    """The connection broke, fell silent or ended before the answer did."""


class Silent(Lost):
    """A deadline of ours passed: nothing says that the replica is gone, only that it is slow."""


class Moved(Lost):
    """We left: the replica has a notice and could not have finished the answer."""


class Failed(Exception):
    """The engine answered with a server error, or not in its protocol."""


class Refused(Exception):
    """The engine finds the request wrong (4xx): the client's answer."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status}")
        self.status = status
        self.body = body


class Engines:
    def __init__(
        self,
        pool: Pool,
        replicas: Replicas,
        settings: GatewaySettings,
        metrics: Metrics,
        vitals: Vitals,
        spawn: Spawn,
    ) -> None:
        self._pool = pool
        self._replicas = replicas
        self._settings = settings
        self._metrics = metrics
        self._vitals = vitals
        self._spawn = spawn
        self._open: set[Attempt] = set()
        self._closed = asyncio.Event()
        self.on_slot: Callable[[TierRef], None] | None = None
        """called when a replica of the tier can take one more"""

    def close(self) -> None:
        """Ends the probing of ejected replicas."""
        self._closed.set()

    def attempt(self, replica: Replica, work: Work, asker: Asker, *, stream: bool) -> Attempt:
        """A context for `ask` and for what is read of its answer.

        When the replica leaves the cluster, or a deadline passes, reading fails at once. `asker`
        says how far the answer is when the replica has a notice.
        """
        attempt = Attempt(replica, work, asker, self._vitals, self._end, stream=stream)
        self._open.add(attempt)
        return attempt

    def _end(self, attempt: Attempt, error: BaseException | None) -> None:
        """Closes the attempt and judges its replica by it.

        An answer that was not read to its end is aborted, so that the engine stops. `Silent` is
        raised where a deadline of ours caused the error, `Moved` where we left.
        """
        self._open.discard(attempt)
        attempt.close(whole=error is None)
        self._slot(attempt.replica)
        if attempt.answer is not None:
            attempt.answer.close()
        if not isinstance(error, _BLAMED):
            return
        if attempt.moved:
            raise Moved(f"{attempt.replica.name} has a notice") from error
        self._strike(attempt.replica, error)
        which = attempt.expired
        if which is None and isinstance(error.__cause__, engine_http.Silent):
            which = "next"
        if which is not None:
            self._metrics.deadlines.labels(attempt.replica.tier.name, which).inc()
            raise Silent(f"{attempt.replica.name}: past the deadline ({which})") from error

    async def watch(self) -> None:
        """Drops answers that are past their deadlines; runs until cancelled."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._settings.deadline_check_s)
            at = now()
            for attempt in [a for a in self._open if a.due_at <= at]:
                attempt.look(at)

    async def ask(
        self, attempt: Attempt, path: str, body: bytes, *, request_id: str,
        patience: Patience | None = None,
    ) -> Answer:  # fmt: skip
        """The engine's 200, its body unread; how that fails is one of this module's exceptions.

        `patience` waits until the engine speaks, and may do something else meanwhile.
        """
        replica = attempt.replica
        answer = self._pool.idle(replica.base_url)
        if answer is None:
            answer = await self._connection(replica)
        headers = f"Content-Type: application/json\r\nX-Request-Id: {request_id}\r\n"
        request = head("POST", replica.base_url, path, headers, len(body)) + body
        attempt.answered_by(answer)
        try:
            answer.ask(request, self._settings.answer_timeout_s)
            if patience is not None:
                await patience(answer)
            await answer.head()
        except Broken as error:
            raise Lost(f"{replica.name}: {error}") from error
        finally:
            if not answer.status:
                answer.drop()
        if answer.status != 200:
            raise await _refusal(answer)
        _check_type(answer, "text/event-stream" if attempt.stream else "application/json")
        return answer

    async def _connection(self, replica: Replica) -> Answer:
        try:
            async with _until_gone(replica):
                return await self._pool.connection(
                    replica.base_url, self._settings.connect_timeout_s
                )
        except NoConnection as error:
            raise Unreachable(f"{replica.name}: {error}") from error
        except TimeoutError as error:
            raise Lost(f"{replica.name}: it left the cluster") from error

    async def max_model_len(self, replica: Replica) -> int:
        """The context window that the engine reports; `Lost` or `Failed` when it does not."""
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s * 2):
                _, body = await self._get(replica, "/v1/models")
                return int(orjson.loads(body)["data"][0]["max_model_len"])
        except (Broken, NoConnection, TimeoutError) as error:
            raise Lost(f"{replica.name}: /v1/models: {error}") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise Failed(f"{replica.name}: /v1/models without max_model_len") from error

    async def _get(self, replica: Replica, path: str) -> tuple[int, bytes]:
        """Status and body, which is cut at `MAX_MODELS_BYTES`."""
        timeout_s = self._settings.connect_timeout_s
        answer = await self._pool.request(
            "GET", replica.base_url, path, connect_timeout_s=timeout_s, silence_s=timeout_s
        )
        try:
            return answer.status, await _bounded(answer, MAX_MODELS_BYTES)
        finally:
            answer.close()

    def full(self, replica: Replica) -> None:
        """Its queue is full with what it runs for us now: one more per answer that ends, and a
        little more each time nobody was refused for a while.
        """
        growing = replica.limit < replica.slots
        replica.limit = min(replica.running, replica.limit)
        if not growing:
            self._grow_later(replica)

    def _grow_later(self, replica: Replica) -> None:
        pause_s = self._settings.busy_retry_s * random.uniform(0.5, 1.5)
        asyncio.get_running_loop().call_later(pause_s, self._grow, replica)

    def _grow(self, replica: Replica) -> None:
        if self._closed.is_set() or replica not in self._replicas.of(replica.tier):
            return
        replica.limit = pacing.grown(replica.limit, replica.slots)
        if replica.limit < replica.slots:
            self._grow_later(replica)
        self._slot(replica)

    def _slot(self, replica: Replica) -> None:
        if self.on_slot is not None:
            self.on_slot(replica.tier)

    def _strike(self, replica: Replica, error: BaseException) -> None:
        """Failures in a row take a replica out, unless too many of its tier are out already."""
        if isinstance(error, Unreachable) or not replica.routable:
            return  # ejected for that alone, or on its way out
        if isinstance(error, EngineFailed) and error.client_error:
            return
        replica.strikes += 1
        if ejection.opens(replica.strikes, *self._replicas.ready_and_ejected(replica.tier)):
            self.eject(replica, reason="answers")

    def eject(
        self, replica: Replica, *, reason: str = "connection", pause_s: float | None = None
    ) -> None:
        """Takes a replica out of routing and probes it back."""
        if not self._replicas.eject(replica):
            return
        self._metrics.ejections.labels(reason).inc()
        if pause_s is None:
            pause_s = self._pause(replica)
        log.warning(
            "replica.ejected", tier=str(replica.tier), pod=replica.name, reason=reason,
            for_s=round(pause_s, 2),
        )  # fmt: skip
        self._spawn(self._probe_back(replica, pause_s))

    def _pause(self, replica: Replica) -> float:
        settings = self._settings
        return ejection.pause_s(
            replica.ejections, settings.eject_s, settings.eject_max_s, random.random()
        )

    async def _probe_back(self, replica: Replica, pause_s: float) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._closed.wait()
            if self._closed.is_set():
                return
            if not replica.ejected or replica not in self._replicas.of(replica.tier):
                return
            if await self._healthy(replica):
                self._replicas.readmit(replica)
                return
            replica.ejections += 1
            pause_s = self._pause(replica)

    async def _healthy(self, replica: Replica) -> bool:
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                status, _ = await self._get(replica, "/health")
                return status == 200
        except (Broken, NoConnection, TimeoutError):
            return False


_BLAMED = (Lost, Failed, EngineFailed, EventTooLong)
"""What a replica is judged by. Not `Unreachable`: that ejects by itself."""


def _check_type(answer: Answer, expected: str) -> None:
    if answer.content_type != expected:
        raise Failed(f"a 200 of type {answer.content_type!r}, not {expected!r}")
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise Failed("a compressed answer that was not asked for")


async def _refusal(answer: Answer) -> Exception:
    """What a status other than 200 means."""
    status = answer.status
    try:
        body = await _bounded(answer, MAX_ERROR_BYTES)
    except Broken as error:
        lost = Lost(f"{error}")
        lost.__cause__ = error
        return lost
    if status in {408, 429, 503}:
        return Busy(f"status {status}")
    if status == 500 and _SHUTDOWN in body:
        return Draining()
    if (400 <= status < 500 or status == 501) and status not in {401, 403, 407}:
        return Refused(status, body)  # 501: vLLM for an API that its model does not have
    return Failed(f"status {status}")


@asynccontextmanager
async def _until_gone(replica: Replica) -> AsyncIterator[None]:
    """TimeoutError in the block once the replica leaves the cluster: a dead node sends no reset."""
    now = asyncio.get_running_loop().time
    async with asyncio.timeout(None) as scope:

        def drop() -> None:
            scope.reschedule(now())

        replica.on_gone.add(drop)
        try:
            yield
        finally:
            replica.on_gone.discard(drop)


async def to_the_end(answer: Answer) -> None:
    """After [DONE] only the end of the body is missing: with it the connection can be kept."""
    if answer.ended:
        return
    with contextlib.suppress(TimeoutError, Broken):
        async with asyncio.timeout(END_TIMEOUT_S):
            while await answer.part():
                pass


async def _bounded(answer: Answer, limit: int) -> bytes:
    """The body, cut at `limit`."""
    body = bytearray()
    while len(body) < limit and (part := await answer.part()):
        body += part
    return bytes(body[:limit])
