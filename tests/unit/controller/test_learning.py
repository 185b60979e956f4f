"""Readings of tiers from samples of engines: rates are never negative, silence is not zero."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from types import SimpleNamespace
from typing import cast

import pytest

from spotinference.api.kinds import POD, TIER
from spotinference.clients.vllm import EngineClient, EngineLoad, ScrapeFailed
from spotinference.controller.demand import DemandBook
from spotinference.controller.learning import EVERY_S, Learner, growth
from spotinference.controller.scrape import FRESH_S, Scraper
from spotinference.controller.store import Store
from spotinference.core import sizing, slo
from spotinference.core.latency import histogram
from spotinference.core.observed import Learned, TierRef
from spotinference.core.sizing import Rules
from spotinference.core.slo import Objective
from tests.support.virtual_time import VirtualClock, virtual_time
from tests.unit.controller.objects import engine_pod, tier


class Engine:
    """Serves `rate` requests per second of 100 tokens each."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.rate = 2.0
        self.began = clock.monotonic()
        self.done = 0.0
        self.fails = False
        self.running = 32
        self.itl_s: float | None = None
        """what every gap between tokens takes; None: the engine does not tell"""
        self.kv_use: float | None = None
        self.preempts = False
        self.preempted = 0.0

    async def context_window(self, host: str, port: int) -> int:
        return 4096

    async def load(self, host: str, port: int) -> EngineLoad:
        if self.fails:
            raise ScrapeFailed("timeout", "no")
        now = self.clock.monotonic()
        self.done += self.rate * (now - self.began)
        self.began = now
        tokens = 100 * self.done
        itl = None
        if self.itl_s is not None:
            itl = histogram(
                [(0.025, tokens * (self.itl_s <= 0.025)), (0.05, tokens), (math.inf, tokens)]
            )
        finished = float(int(self.done))
        self.preempted += self.preempts
        return EngineLoad(
            self.running, 0, finished, 0.0, self.preempted, tokens, kv_use=self.kv_use, itl=itl
        )

    def restart(self) -> None:
        self.done = 0.0


class Bench:
    def __init__(self, clock: VirtualClock, **scaling: object) -> None:
        self.engine = Engine(clock)
        self.store = Store(clock)
        self.looks: list[TierRef] = []
        scraper = Scraper(self.store, cast("EngineClient", self.engine), clock, lambda _: None)
        self.learner = Learner(
            self.store, scraper, DemandBook(self.store, clock), clock, self.looks.append
        )
        body = tier(scaling=scaling)
        self.uid = body["metadata"]["uid"]
        self.store.put(TIER, body)
        self.store.put(POD, engine_pod())
        self.tasks = [asyncio.create_task(part.run()) for part in (scraper, self.learner)]

    def learned(self) -> Learned:
        found = self.learner.learned(self.uid)
        assert found is not None
        return found


@virtual_time
async def test_the_rate_of_a_tier_and_of_a_full_replica_are_learned(clock: VirtualClock) -> None:
    it = Bench(clock)
    await asyncio.sleep(900)
    memory = it.learned().memory
    assert memory.forecaster.levels is not None
    assert memory.forecaster.levels[0] == pytest.approx(2.0, rel=0.15)
    # half full (32 of targetRunning 64) at 2 requests/s
    assert memory.capacity.requests_per_s == pytest.approx(4.0, rel=0.15)
    assert memory.capacity.tokens_per_s == pytest.approx(400, rel=0.15)
    assert it.looks, "the tier is looked at when what it needs changes"


@pytest.mark.fault(55)
@virtual_time
async def test_an_engine_that_restarts_makes_no_rate_negative(clock: VirtualClock) -> None:
    it = Bench(clock)
    for _ in range(20):
        await asyncio.sleep(37)
        it.engine.restart()
        reading = it.learned().reading
        assert reading.arrived >= 0
        assert reading.finished >= 0
        assert reading.tokens >= 0
    levels = it.learned().memory.forecaster.levels
    assert levels is not None
    assert min(levels) > 0.5


@pytest.mark.fault(55)
@pytest.mark.parametrize(("before", "after", "grown"), [(5, 9, 4), (9, 9, 0), (9, 2, 2), (9, 0, 0)])
def test_a_counter_that_went_back_began_anew(before: float, after: float, grown: float) -> None:
    assert growth(before, after) == grown


@virtual_time
async def test_a_silent_replica_adds_nothing_and_comes_back_where_it_was(
    clock: VirtualClock,
) -> None:
    it = Bench(clock)
    await asyncio.sleep(600)
    it.engine.fails = True
    await asyncio.sleep(FRESH_S + 2 * EVERY_S)
    it.engine.fails = False
    await asyncio.sleep(2 * EVERY_S)
    assert it.learned().memory.capacity.requests_per_s == pytest.approx(4.0, rel=0.2)


@pytest.mark.fault(52)
@virtual_time
async def test_what_was_not_seen_is_neither_a_lull_nor_a_burst(clock: VirtualClock) -> None:
    it = Bench(clock)
    await asyncio.sleep(900)
    it.engine.fails = True
    await asyncio.sleep(1200)
    assert it.learner.learned(it.uid) is None, "nothing is foreseen from what is long past"
    it.engine.fails = False
    await asyncio.sleep(90)
    learned = it.learned()
    assert learned.memory.forecaster.levels is not None
    assert learned.memory.forecaster.levels == pytest.approx((2.0, 2.0, 2.0, 2.0), rel=0.15)
    assert learned.memory.capacity.requests_per_s == pytest.approx(4.0, rel=0.15)


@pytest.mark.fault(17)
@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_is_neither_a_lull_nor_a_deaf_hour(hours: int) -> None:
    @virtual_time
    async def run(clock: VirtualClock) -> None:
        it = Bench(clock)
        await asyncio.sleep(900)
        clock.skew = timedelta(hours=hours)
        await asyncio.sleep(90)
        found = it.learned()
        assert clock.now().timestamp() - found.reading.at_s <= EVERY_S
        assert found.memory.forecaster.levels == pytest.approx((2.0, 2.0, 2.0, 2.0), rel=0.15)
        assert found.memory.capacity.requests_per_s == pytest.approx(4.0, rel=0.15)
        assert found.memory.spare_s < 120
        await asyncio.sleep(900)
        made = it.learned().memory.forecaster.made
        assert 0 < made[0].due_s - clock.now().timestamp() < 600

    run()


@pytest.mark.fault(21)
@virtual_time
async def test_a_tier_whose_reading_fails_ends_neither_the_process_nor_the_others(
    clock: VirtualClock,
) -> None:
    it = Bench(clock)
    bugs: list[str] = []
    it.learner.on_bug = bugs.append
    broken = tier(uid="broken-uid")
    broken["metadata"]["name"] = "broken"
    it.store.put(TIER, broken)
    fresh = it.learner.demand.fresh

    def fails(ref: TierRef) -> object:
        if ref.name == "broken":
            raise OverflowError("of one tier")
        return fresh(ref)

    it.learner.demand = cast("DemandBook", SimpleNamespace(fresh=fails))
    await asyncio.sleep(120)
    assert not it.tasks[1].done()
    assert it.learned().memory.capacity.known
    assert it.learner.learned("broken-uid") is None
    assert set(bugs) == {"OverflowError"}


@virtual_time
async def test_a_tier_that_is_gone_is_forgotten(clock: VirtualClock) -> None:
    it = Bench(clock)
    await asyncio.sleep(60)
    it.store.gone(TIER, tier())
    await asyncio.sleep(60)
    assert it.learner.learned(it.uid) is None


@virtual_time
async def test_latencies_lower_what_a_replica_takes_only_where_the_tier_asks_for_them(
    clock: VirtualClock,
) -> None:
    for asked, full in ((None, 64.0), ({}, 32 / 2**0.5)):
        it = Bench(clock, **({} if asked is None else {"slo": asked}))
        it.engine.running, it.engine.itl_s = 8, 0.02
        await asyncio.sleep(300)
        it.engine.running, it.engine.itl_s = 32, 0.05
        await asyncio.sleep(300)
        objective = None if asked is None else Objective(1.0, 0.033, 0.95)
        rules = Rules(cold_start_s=60, target_running=64, objective=objective)
        assert sizing.full(it.learned().memory, rules) == pytest.approx(full)
        for task in it.tasks:
            task.cancel()


@pytest.mark.fault(55)
@virtual_time
async def test_an_engine_that_restarts_breaks_no_objective_by_it(clock: VirtualClock) -> None:
    it = Bench(clock, slo={})
    it.engine.itl_s = 0.02
    for _ in range(20):
        await asyncio.sleep(37)
        it.engine.restart()
    evidence = it.learned().memory.evidence
    assert sum(kept.itl_s for kept in evidence.levels) > 100
    assert slo.limit(evidence).in_flight is None


@virtual_time
async def test_a_cache_without_room_fills_a_replica_although_nothing_waits(
    clock: VirtualClock,
) -> None:
    below = 32 / 2**0.5
    cases = [(0.97, True, below), (0.97, False, 64.0), (0.6, True, 64.0), (None, True, 64.0)]
    for kv_use, preempts, full in cases:
        it = Bench(clock)
        it.engine.running, it.engine.kv_use = 8, None if kv_use is None else 0.2
        await asyncio.sleep(300)
        it.engine.running, it.engine.kv_use, it.engine.preempts = 32, kv_use, preempts
        await asyncio.sleep(300)
        assert it.learned().reading.waiting == 0
        found = sizing.full(it.learned().memory, Rules(cold_start_s=60))
        assert found == pytest.approx(full), (kv_use, preempts)
        for task in it.tasks:
            task.cancel()
