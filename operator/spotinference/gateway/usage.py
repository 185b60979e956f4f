"""Usage records: exactly one per attempt, written by a thread of their own, shipped in batches.

The event loop only puts a record into a queue. What the disk has is shipped, segment by segment,
to a URL that takes newline-separated JSON; a segment is deleted after a 2xx and not before, and
carries the same `Idempotency-Key` however often it is sent. Without a URL records stay in the spool
up to its bound, for `spotinference usage`.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import aiohttp
import orjson
import structlog
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_never,
    wait_random_exponential,
)

from spotinference.api import times
from spotinference.api.keys import ApiKey
from spotinference.clients.clock import Clock
from spotinference.core.account import Account
from spotinference.core.usage import percentiles
from spotinference.gateway.catalogue import Tier
from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.metrics import Metrics
from spotinference.gateway.spool import Spool, SpoolFull
from spotinference.gateway.trace import Attempt, Trace

log = structlog.get_logger(__name__)

MAX_QUEUED = 50_000
"""Records between loop and disk, some 30 MB; beyond it a disk that hangs costs records, not memory."""
BATCH = 1000
BATCH_S = 0.02
"""Records that come within this are one write and one fsync."""
RETRY_S = 1.0
LAST_SHIPMENT_S = 3.0
"""For what is still to be sent when the gateway ends; then it waits in the spool for the next."""
VERSION = 1


class Request(NamedTuple):
    """One request, over: what its records are made of."""

    id: str
    path: str
    key: ApiKey
    tier: Tier
    trace: Trace
    account: Account
    at: datetime
    """wall time of the end"""
    ended: float
    """monotonic, the same moment"""


def records(request: Request) -> list[dict[str, object]]:
    """One per attempt; prompt and cached tokens stand in the first, so that sums are the bill's."""
    return [_record(request, attempt) for attempt in request.trace.attempts]


def _record(request: Request, attempt: Attempt) -> dict[str, object]:
    account, replica = request.account, attempt.replica
    ended = attempt.ended if attempt.ended is not None else request.ended
    first = attempt.number == 1
    itl_p50_s, itl_p95_s = percentiles(attempt.gaps, 50, 95)
    began = request.at - timedelta(seconds=request.ended - attempt.started)
    return {
        "version": VERSION,
        "request": request.id,
        "attempt": attempt.number,
        "engine_request": attempt.engine_request,
        "at": times.to_micro_text(began),
        "path": request.path,
        "tenant": request.key.namespace,
        "key": request.key.id,
        "tier": request.tier.ref.name,
        "model": request.tier.names[0],
        "revision": request.tier.revision,
        "replica": replica.name,
        "replica_uid": replica.uid,
        "pool": replica.pool,
        "zone": replica.zone,
        "node": replica.node,
        "prompt_tokens": (account.prompt_tokens or 0) if first else 0,
        "cached_tokens": (account.cached_tokens or 0) if first else 0,
        "completion_tokens": attempt.completion,
        "replayed_tokens": attempt.replayed,
        "ttft_s": _ms(attempt.first_at - attempt.started if attempt.first_at else None),
        "itl_p50_s": _ms(itl_p50_s),
        "itl_p95_s": _ms(itl_p95_s),
        "total_s": _ms(ended - attempt.started),
        "parked_s": _ms(attempt.parked_s),
        "batch": attempt.batch,
        "class": account.kind.value,
        "continuations": account.continuations,
        "status": attempt.status,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


class Writer:
    """The thread that writes; `put` never blocks."""

    def __init__(
        self, spool: Spool, roll_s: float | None, on_written: Callable[[str, int], None]
    ) -> None:
        """`roll_s`: a segment is closed so old at the latest; None: only when it is full.

        `on_written(outcome, records)` is called in the thread: `written`, or `dropped`.
        """
        self._spool = spool
        self._roll_s = roll_s
        self._on_written = on_written
        self._queue: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._rolled_at = time.monotonic()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
        self._thread.start()

    def put(self, request: Request) -> None:
        if self._queue.qsize() >= MAX_QUEUED:
            self._on_written("dropped", len(request.trace.attempts))
        else:
            self._queue.put(request)

    def close(self, timeout_s: float) -> bool:
        """Writes what is queued, and closes the last segment. Blocks; False: the disk hangs."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        stop = False
        while not stop:
            batch, stop = self._next()
            lines = [orjson.dumps(r) + b"\n" for request in batch for r in records(request)]
            if lines:
                self._append(b"".join(lines), len(lines))
            if self._roll_s is not None and time.monotonic() - self._rolled_at >= self._roll_s:
                self._rolled_at = time.monotonic()
                with contextlib.suppress(OSError):
                    self._spool.roll()
        with contextlib.suppress(OSError):
            self._spool.roll()

    def _next(self) -> tuple[list[Request], bool]:
        batch: list[Request] = []
        try:
            first = self._queue.get(timeout=self._roll_s)
            if first is None:
                return batch, True
            batch.append(first)
            time.sleep(BATCH_S)
            while len(batch) < BATCH:
                item = self._queue.get_nowait()
                if item is None:
                    return batch, True
                batch.append(item)
        except queue.Empty:
            pass
        return batch, False

    def _append(self, lines: bytes, count: int) -> None:
        """Until the disk takes it; meanwhile the queue fills up, and is bounded."""
        logged = False
        while True:
            try:
                self._spool.append(lines)
            except SpoolFull as full:
                log.error("usage.dropped", records=count, error=str(full))  # noqa: TRY400
                self._on_written("dropped", count)
                return
            except OSError as error:
                if not logged:
                    log.error("usage.not_written", error=str(error))  # noqa: TRY400
                    logged = True
                if self._closing.wait(RETRY_S):
                    self._on_written("dropped", count)
                    return
            else:
                self._on_written("written", count)
                return


class Usage:
    """Takes requests that are over; without a spool they are forgotten."""

    def __init__(
        self, settings: GatewaySettings, gateway_id: str, clock: Clock, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._spool: Spool | None = None
        self._writer: Writer | None = None
        self._shipping = asyncio.Lock()
        if settings.usage_spool is not None:
            self._spool = Spool(settings.usage_spool, gateway_id, settings.usage_max_bytes)
            roll_s = settings.usage_ship_s if settings.usage_url else None
            self._writer = Writer(self._spool, roll_s, self._written)

    def _written(self, outcome: str, count: int) -> None:
        self._metrics.usage_records.labels(outcome).inc(count)

    def over(
        self, request_id: str, path: str, key: ApiKey, tier: Tier, trace: Trace, account: Account
    ) -> None:
        if self._writer is not None and trace.attempts:
            self._writer.put(
                Request(
                    request_id, path, key, tier, trace, account,
                    self._clock.now(), time.monotonic(),
                )
            )  # fmt: skip

    async def close(self, timeout_s: float = 5.0) -> None:
        """Writes what is queued and sends it, within the time-outs: the spool may go with the pod."""
        if self._writer is None or self._spool is None:
            return
        if not await asyncio.to_thread(self._writer.close, timeout_s):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SHIPMENT_S):
                await self._ship()
        with self._told_of_the_disk():
            await asyncio.to_thread(self._spool.close)

    async def ship(self) -> None:
        """Sends closed segments; runs until cancelled."""
        while self._spool is not None and self._settings.usage_url is not None:
            await self._ship()
            await asyncio.sleep(self._settings.usage_ship_s)

    async def _ship(self) -> None:
        """All segments that are closed now."""
        if self._spool is None or self._settings.usage_url is None:
            return
        paths: list[Path] = []
        async with self._shipping:
            with self._told_of_the_disk():
                paths = await asyncio.to_thread(self._to_ship, self._spool)
            if not paths:
                return
            timeout = aiohttp.ClientTimeout(total=self._settings.usage_timeout_s)
            async with aiohttp.ClientSession(timeout=timeout) as session:
                for path in paths:
                    with self._told_of_the_disk():
                        await self._deliver(session, path)

    @contextlib.contextmanager
    def _told_of_the_disk(self) -> Iterator[None]:
        """A disk that fails is tried again in the next round: serving goes on meanwhile."""
        try:
            yield
        except OSError as error:
            self._metrics.usage_shipments_failed.inc()
            log.warning("usage.not_shipped", error=str(error)[:300])

    @staticmethod
    def _to_ship(spool: Spool) -> list[Path]:
        spool.adopt()
        return spool.closed()

    async def _deliver(self, session: aiohttp.ClientSession, path: Path) -> None:
        """Until it is taken: a record is deleted after a 2xx only. `OSError` of the disk."""
        data = await asyncio.to_thread(path.read_bytes)
        async for attempt in AsyncRetrying(
            stop=stop_never,
            wait=wait_random_exponential(
                multiplier=self._settings.usage_retry_s, max=self._settings.usage_retry_max_s
            ),
            retry=retry_if_exception_type((aiohttp.ClientError, TimeoutError, OSError)),
        ):
            with attempt:
                await self._post(session, path, data)
        await asyncio.to_thread(path.unlink, missing_ok=True)
        self._metrics.usage_records.labels("shipped").inc(data.count(b"\n"))

    async def _post(self, session: aiohttp.ClientSession, path: Path, data: bytes) -> None:
        assert self._settings.usage_url is not None
        key = path.stem.partition("-")[2]
        try:
            async with session.post(
                self._settings.usage_url,
                data=data,
                headers={"Content-Type": "application/x-ndjson", "Idempotency-Key": key},
                allow_redirects=False,
            ) as response:
                await response.content.read(4096)  # the rest is nothing to us
                if not 200 <= response.status < 300:
                    raise aiohttp.ClientPayloadError(f"status {response.status}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._metrics.usage_shipments_failed.inc()
            log.warning("usage.not_shipped", segment=path.name, error=str(error)[:300])
            raise
