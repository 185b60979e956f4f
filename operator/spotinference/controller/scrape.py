"""Load samples of all ready engine pods, each no older than a bound: the autoscaler's eyes.

One loop asks each pod when it is due: often while it works, seldom while it idles. A pod that
cannot be read has no sample; whoever reads `sample_of` gets None and must not take it for zero.
A pod that still loads is asked too, quietly, so that it has a sample when it becomes ready; and
a replica that waits for leadership asks as well, so that it does not begin blind.

A pod that can be read is also asked for its context window, once: that does not change while it runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from spotinference.api import names
from spotinference.api.kinds import POD, Json
from spotinference.clients.clock import Clock
from spotinference.clients.vllm import EngineClient, EngineLoad, ScrapeFailed
from spotinference.controller.store import Store, tier_of
from spotinference.core.health import Contact
from spotinference.core.observed import Sample, TierRef, Window
from spotinference.core.window import arguments_hash

log = structlog.get_logger(__name__)

IDLE_EVERY_S = 5.0
BUSY_EVERY_S = 1.0
RETRY_S = 0.5
"""After a failure, and while a pod loads."""
FRESH_S = 15.0
"""Older samples do not count: three idle scrapes missed."""
TICK_S = 0.25
UNREACHABLE = frozenset({"timeout", "connection"})
"""Reasons of a failed scrape that leave open whether the machine is still there."""
MAX_WINDOW_QUESTIONS = 3
"""Per pod: an engine that does not tell its context window is not asked for ever."""
MAX_AT_ONCE = 64
MAX_FAILING_AT_ONCE = 16
"""Of those, for pods whose last scrape failed: each may hold its place until the deadline."""


@dataclass(slots=True)
class _Target:
    ref: TierRef
    host: str
    due_at: float
    sample: Sample | None = None
    sampled_at: float = 0.0
    failing: bool = False
    ready: bool = False
    node: str = ""
    answered_at: float | None = None
    """by any answer, also a bad one: the machine lives"""
    unreachable_since: float | None = None
    arguments: tuple[str, ...] = ()
    window: Window | None = None
    window_questions: int = 0


@dataclass(slots=True)
class ScrapeStats:
    succeeded: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    """by reason"""


class Scraper:
    def __init__(
        self,
        store: Store,
        engines: EngineClient,
        clock: Clock,
        on_change: Callable[[TierRef], None],
    ) -> None:
        self._store = store
        self._engines = engines
        self._clock = clock
        self._on_change = on_change
        self._targets: dict[str, _Target] = {}
        self._under_way: set[str] = set()
        self.stats = ScrapeStats()

    def sample_of(self, uid: str) -> Sample | None:
        """The newest sample of a pod, unless it is too old."""
        target = self._targets.get(uid)
        if target is None or target.sample is None:
            return None
        if self._clock.monotonic() - target.sampled_at > FRESH_S:
            return None
        return target.sample

    def window_of(self, uid: str) -> Window | None:
        """The context window that a pod's engine told, for as long as the pod is there."""
        target = self._targets.get(uid)
        return None if target is None else target.window

    def contact(self, node: str) -> Contact:
        """What the engines on a node showed: the second witness of its health."""
        now = self._clock.monotonic()
        there = [t for t in self._targets.values() if t.node == node]
        answered = [now - t.answered_at for t in there if t.answered_at is not None]
        # One that never answered may still load: its silence says nothing.
        failing = [
            now - t.unreachable_since if t.unreachable_since is not None else 0.0
            for t in there
            if t.answered_at is not None
        ]
        return Contact(min(answered, default=None), min(failing, default=0.0))

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._refresh_targets()
                for uid in self._due():
                    self._under_way.add(uid)
                    group.create_task(self._scrape(uid, self._targets[uid]))
                await asyncio.sleep(TICK_S)

    def _refresh_targets(self) -> None:
        now = self._clock.monotonic()
        found = {
            pod["metadata"]["uid"]: pod for pod in self._store.all(POD).values() if scrapable(pod)
        }
        for uid in [uid for uid in self._targets if uid not in found]:
            del self._targets[uid]
        for uid, pod in found.items():
            ref = tier_of(POD, pod)
            if ref is None:
                continue
            target = self._targets.get(uid)
            # A sandbox made anew has another address; the old one may be another pod's by now.
            if target is None or target.host != pod["status"]["podIP"]:
                target = _Target(ref=ref, host=pod["status"]["podIP"], due_at=now)
                target.node = pod["spec"].get("nodeName", "")
                target.arguments = engine_arguments(pod)
                self._targets[uid] = target
            if is_ready(pod) and not target.ready:
                target.ready = True
                target.due_at = now if target.sample is None else target.due_at

    def _due(self) -> list[str]:
        """Those whose turn it is, the longest waiting first, as far as there is room."""
        now = self._clock.monotonic()
        room = MAX_AT_ONCE - len(self._under_way)
        busy = sum(uid in self._targets and self._targets[uid].failing for uid in self._under_way)
        failing_room = MAX_FAILING_AT_ONCE - busy
        waiting = [
            (target.due_at, uid, target.failing)
            for uid, target in self._targets.items()
            if target.due_at <= now and uid not in self._under_way
        ]
        due: list[str] = []
        for _, uid, failing in sorted(waiting):
            if len(due) >= room:
                break
            if failing and failing_room <= 0:
                continue
            failing_room -= failing
            due.append(uid)
        return due

    async def _scrape(self, uid: str, target: _Target) -> None:
        try:
            load = await self._engines.load(target.host, names.ENGINE_PORT)
        except ScrapeFailed as error:
            now = self._clock.monotonic()
            target.due_at = now + RETRY_S
            if error.reason not in UNREACHABLE:
                target.answered_at, target.unreachable_since = now, None
            elif target.unreachable_since is None:
                target.unreachable_since = now
            if not target.ready:
                return  # loading: nobody answers yet
            self.stats.failed[error.reason] = self.stats.failed.get(error.reason, 0) + 1
            if not target.failing:
                log.warning("scrape.failed", tier=str(target.ref), error=str(error))
                target.failing = True
                self._on_change(target.ref)
        else:
            self.stats.succeeded += 1
            self._keep(target, load)
            if target.window is None:
                await self._ask_window(target)
        finally:
            self._under_way.discard(uid)

    async def _ask_window(self, target: _Target) -> None:
        if target.window_questions >= MAX_WINDOW_QUESTIONS:
            return
        target.window_questions += 1
        try:
            tokens = await self._engines.context_window(target.host, names.ENGINE_PORT)
        except ScrapeFailed as error:
            log.info("scrape.no_window", tier=str(target.ref), error=str(error))
            return
        target.window = Window(tokens, arguments_hash(target.arguments))
        self._on_change(target.ref)

    def _keep(self, target: _Target, load: EngineLoad) -> None:
        before = target.sample
        was_failing = target.failing
        target.failing = False
        target.sampled_at = self._clock.monotonic()
        target.answered_at, target.unreachable_since = target.sampled_at, None
        now = self._clock.now()
        busy = load.running > 0 or load.waiting > 0
        worked = before is not None and before.finished_total != load.finished_total
        target.sample = Sample(
            at=now,
            running=load.running,
            waiting=load.waiting,
            finished_total=load.finished_total,
            rejected_total=load.rejected_total,
            active_at=now if busy or worked else before.active_at if before else None,
            tokens_total=load.tokens_total,
            preempted_total=load.preempted_total,
            kv_use=load.kv_use,
            ttft=load.ttft,
            itl=load.itl,
        )
        target.due_at = target.sampled_at + (BUSY_EVERY_S if busy else IDLE_EVERY_S)
        if before is None or was_failing or _numbers(before) != _numbers(target.sample):
            self._on_change(target.ref)


def _numbers(sample: Sample) -> tuple[int, int, float, float]:
    return sample.running, sample.waiting, sample.finished_total, sample.rejected_total


def scrapable(pod: Json) -> bool:
    """An engine pod whose engine runs, not on its way out."""
    meta, status = pod["metadata"], pod.get("status", {})
    return (
        (meta.get("labels") or {}).get(names.LABEL_ROLE) == names.ROLE_ENGINE
        and meta.get("deletionTimestamp") is None
        and bool(status.get("podIP"))
        and any(
            "running" in (container.get("state") or {})
            for container in status.get("containerStatuses") or ()
        )
    )


def is_ready(pod: Json) -> bool:
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in pod.get("status", {}).get("conditions") or ()
    )


def engine_arguments(pod: Json) -> tuple[str, ...]:
    """What its engine was started with; empty when it has no engine container."""
    for container in pod["spec"].get("containers") or ():
        if container.get("name") == names.ENGINE_CONTAINER:
            return tuple(container.get("args") or ())
    return ()
