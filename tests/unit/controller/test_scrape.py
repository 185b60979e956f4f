"""Samples of engines: fresh or absent, never invented; one that hangs delays nobody else."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import cast

import pytest

from spotinference.api import names
from spotinference.api.kinds import POD
from spotinference.clients.vllm import EngineClient, EngineLoad, ScrapeFailed
from spotinference.controller.scrape import FRESH_S, IDLE_EVERY_S, Scraper
from spotinference.controller.store import Store
from spotinference.core.health import Contact
from spotinference.core.observed import TierRef, Window
from spotinference.core.window import arguments_hash
from tests.support.virtual_time import VirtualClock, virtual_time
from tests.unit.controller.objects import REF, engine_pod

UID = "pod-1-uid"


class FakeEngine:
    def __init__(self) -> None:
        self.load_now = EngineLoad(0, 0, 0.0, 0.0)
        self.fails: str | None = None
        self.asked = 0
        self.host = ""
        self.window: int | None = 4096
        self.asked_window = 0

    async def load(self, host: str, port: int) -> EngineLoad:
        self.asked += 1
        self.host = host
        if self.fails is not None:
            raise ScrapeFailed(self.fails, "no")
        return self.load_now

    async def context_window(self, host: str, port: int) -> int:
        self.asked_window += 1
        if self.window is None:
            raise ScrapeFailed("missing", "no")
        return self.window


class Bench:
    def __init__(self, clock: VirtualClock, *, ready: bool = True) -> None:
        self.engine = FakeEngine()
        self.store = Store(clock)
        self.changed: list[TierRef] = []
        self.scraper = Scraper(
            self.store, cast("EngineClient", self.engine), clock, self.changed.append
        )
        self.store.put(POD, engine_pod(ready=ready))
        self.task = asyncio.create_task(self.scraper.run())


@virtual_time
async def test_a_pod_whose_sandbox_was_made_anew_is_asked_at_its_new_address(
    clock: VirtualClock,
) -> None:
    it = Bench(clock)
    it.engine.load_now = EngineLoad(3, 0, 0.0, 0.0)
    await asyncio.sleep(5)
    it.engine.fails = "connection"
    it.store.put(POD, engine_pod(version=2, ip="127.0.0.9"))
    await asyncio.sleep(1)
    assert it.engine.host == "127.0.0.9"
    assert it.scraper.sample_of(UID) is None, "what the old address said is not this one's"
    it.task.cancel()


@virtual_time
async def test_an_idle_engine_is_asked_seldom_and_a_working_one_often(clock: VirtualClock) -> None:
    it = Bench(clock)
    await asyncio.sleep(60)
    idle = it.engine.asked
    assert 60 / IDLE_EVERY_S - 3 <= idle <= 60 / IDLE_EVERY_S + 2
    it.engine.load_now = EngineLoad(3, 0, 0.0, 0.0)
    await asyncio.sleep(60)
    assert it.engine.asked - idle > 40


@virtual_time
async def test_only_a_changed_load_has_the_tier_looked_at(clock: VirtualClock) -> None:
    it = Bench(clock)
    await asyncio.sleep(60)
    known = [REF, REF]
    assert it.changed == known, "its load, and its context window"
    it.engine.load_now = EngineLoad(1, 0, 0.0, 0.0)
    await asyncio.sleep(10)
    assert it.changed == [*known, REF]


@virtual_time
async def test_an_engine_that_answers_is_asked_for_its_context_window_once(
    clock: VirtualClock,
) -> None:
    it = Bench(clock, ready=False)
    it.engine.fails = "connection"
    pod = engine_pod(ready=False, version=2)
    args = ["/m", "--dtype", "x"]
    pod["spec"]["containers"] = [{"name": names.ENGINE_CONTAINER, "args": args}]
    it.store.put(POD, pod)
    await asyncio.sleep(30)
    assert it.engine.asked_window == 0, "it still loads"
    it.engine.fails = None
    await asyncio.sleep(60)
    assert it.scraper.window_of(UID) == Window(4096, arguments_hash(args))
    assert it.engine.asked_window == 1
    it.store.gone(POD, pod)
    await asyncio.sleep(1)
    assert it.scraper.window_of(UID) is None


@virtual_time
async def test_an_engine_that_tells_no_context_window_is_asked_three_times_and_still_read(
    clock: VirtualClock,
) -> None:
    it = Bench(clock)
    it.engine.window = None
    await asyncio.sleep(60)
    assert it.engine.asked_window == 3
    assert it.scraper.window_of(UID) is None
    assert it.scraper.sample_of(UID) is not None
    assert it.scraper.stats.failed == {}


@virtual_time
async def test_a_sample_ages_out_when_the_engine_cannot_be_read(clock: VirtualClock) -> None:
    it = Bench(clock)
    await asyncio.sleep(1)
    assert it.scraper.sample_of(UID) is not None
    it.engine.fails = "timeout"
    await asyncio.sleep(FRESH_S + 2)
    assert it.scraper.sample_of(UID) is None
    assert it.scraper.stats.failed["timeout"] > 0
    it.engine.fails = None
    await asyncio.sleep(1)
    assert it.scraper.sample_of(UID) is not None


@virtual_time
async def test_short_requests_between_two_scrapes_count_as_work(clock: VirtualClock) -> None:
    it = Bench(clock)
    await asyncio.sleep(1)
    first = it.scraper.sample_of(UID)
    assert first is not None
    assert first.active_at is None
    it.engine.load_now = EngineLoad(0, 0, 5.0, 0.0)
    await asyncio.sleep(IDLE_EVERY_S + 1)
    second = it.scraper.sample_of(UID)
    assert second is not None
    assert second.active_at == second.at
    await asyncio.sleep(4 * IDLE_EVERY_S)
    third = it.scraper.sample_of(UID)
    assert third is not None
    assert third.active_at == second.active_at


@virtual_time
async def test_a_loading_engine_that_does_not_answer_is_no_failure(clock: VirtualClock) -> None:
    it = Bench(clock, ready=False)
    it.engine.fails = "connection"
    await asyncio.sleep(30)
    assert it.scraper.stats.failed == {}
    assert it.changed == []
    it.engine.fails = None
    await asyncio.sleep(1)
    assert it.scraper.sample_of(UID) is not None, "known before the pod is ready"


@virtual_time
async def test_a_pod_that_goes_is_asked_no_more(clock: VirtualClock) -> None:
    it = Bench(clock)
    await asyncio.sleep(1)
    it.store.gone(POD, engine_pod())
    asked = it.engine.asked
    await asyncio.sleep(60)
    assert it.engine.asked == asked
    assert it.scraper.sample_of(UID) is None


@virtual_time
async def test_an_engine_witnesses_for_its_node_by_any_answer(clock: VirtualClock) -> None:
    it = Bench(clock)
    await asyncio.sleep(20)
    contact = it.scraper.contact("node-1")
    assert contact.answered_ago_s is not None
    assert contact.answered_ago_s <= IDLE_EVERY_S + 1
    assert contact.failing_s == 0
    it.engine.fails = "connection"
    await asyncio.sleep(20)
    contact = it.scraper.contact("node-1")
    assert contact.failing_s > 12
    assert contact.answered_ago_s is not None
    assert contact.answered_ago_s > 12
    it.engine.fails = "malformed"  # it lives, and talks rubbish
    await asyncio.sleep(2)
    contact = it.scraper.contact("node-1")
    assert contact.failing_s == 0
    assert contact.answered_ago_s is not None
    assert contact.answered_ago_s < 2
    assert it.scraper.contact("node-2") == Contact()


@virtual_time
async def test_an_engine_that_never_answered_witnesses_nothing(clock: VirtualClock) -> None:
    it = Bench(clock, ready=False)
    it.engine.fails = "connection"
    await asyncio.sleep(60)
    assert it.scraper.contact("node-1") == Contact()


class Crowd:
    """Engines by host; those in `hanging` hold a scrape until its deadline."""

    def __init__(self, clock: VirtualClock, hanging: int) -> None:
        self.clock = clock
        self.hosts = [f"10.0.{i // 250}.{1 + i % 250}" for i in range(1000)]
        self.hanging = set(self.hosts[:hanging])
        self.at: dict[str, list[float]] = {}

    async def context_window(self, host: str, port: int) -> int:
        return 4096

    async def load(self, host: str, port: int) -> EngineLoad:
        if host in self.hanging:
            await asyncio.sleep(2.0)
            raise ScrapeFailed("timeout", "no")
        await asyncio.sleep(0.01)
        self.at.setdefault(host, []).append(self.clock.monotonic())
        return EngineLoad(1, 0, 0.0, 0.0)


async def slowest_percentile(clock: VirtualClock, hanging: int) -> float:
    """p99 of the time between two samples of an engine that answers."""
    crowd = Crowd(clock, hanging)
    store = Store(clock)
    scraper = Scraper(store, cast("EngineClient", crowd), clock, lambda _: None)
    for number, host in enumerate(crowd.hosts):
        pod = engine_pod(f"pod-{number}")
        pod["metadata"]["uid"] = f"uid-{number}"
        pod["status"]["podIP"] = host
        store.put(POD, pod)
    task = asyncio.create_task(scraper.run())
    await asyncio.sleep(60)
    task.cancel()
    gaps = sorted(
        after - before
        for times in crowd.at.values()
        for before, after in pairwise(t for t in times if t > clock.monotonic() - 40)
    )
    return gaps[round(0.99 * len(gaps))]


@pytest.mark.fault(50)
@virtual_time
async def test_one_hanging_replica_of_a_thousand_does_not_delay_the_others(
    clock: VirtualClock,
) -> None:
    undisturbed = await slowest_percentile(clock, 0)
    assert await slowest_percentile(clock, 1) <= 1.1 * undisturbed
    # Not even a tenth of them: the others keep three quarters of the places.
    assert await slowest_percentile(clock, 100) <= 1.5 * undisturbed
