"""Learns the load of each tier from the scraper's samples: the only state the autoscaler has here.

Every `EVERY_S` one reading per tier: what its replicas finished since the last one, what they have
in flight, what gateways hold. Counters that went back (a restarted engine) count from zero, a
replica without a fresh sample adds nothing and takes nothing away, and while none has one nothing is
learned or foreseen. The decisions are core's.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from spotinference import errors
from spotinference.api import parse
from spotinference.api.kinds import POD, TIER, Json
from spotinference.api.tier import TierSpec
from spotinference.api.tier_status import TierStatus
from spotinference.clients.clock import Clock
from spotinference.controller.demand import DemandBook
from spotinference.controller.scrape import Scraper, is_ready
from spotinference.controller.store import Store
from spotinference.core import learned, sizing
from spotinference.core.autoscale import sizing_rules
from spotinference.core.latency import Histogram, grown, in_time
from spotinference.core.observed import Learned, Sample, TierRef
from spotinference.core.slo import KV_FULL, Objective, Pace

log = structlog.get_logger(__name__)

EVERY_S = 10.0
CLOCK_STEP_S = 5.0
"""Wall time that passed by so much more or less than the monotonic clock says was set, not lived."""
AT_ONCE = 50
"""Tiers read without letting others run: a few milliseconds."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """Of one pod, at the last reading that had a sample of it."""

    at_s: float
    ttft: Histogram | None
    itl: Histogram | None
    preempted: float
    kv_use: float | None
    running: int
    finished: float
    rejected: float
    tokens: float
    in_flight: int


@dataclass(slots=True)
class _Tier:
    memory: sizing.Memory
    at_s: float
    """wall time of the last reading: the daily pattern needs the time of day"""
    read_at: float
    """the same by the monotonic clock"""
    spec: TierSpec
    status: TierStatus
    version: str = ""
    """resourceVersion that spec and status were parsed from"""
    pods: dict[str, _Seen] = field(default_factory=dict)
    parked: int = 0
    reading: sizing.Reading | None = None
    wanted: int = 0


@dataclass(slots=True)
class Learner:
    store: Store
    scraper: Scraper
    demand: DemandBook
    clock: Clock
    on_change: Callable[[TierRef], None]
    on_bug: Callable[[str], None] = lambda _: None
    """told the family of an error that no tier's learning should have raised"""
    _tiers: dict[str, _Tier] = field(default_factory=dict)
    """by the tier's uid"""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self.look()

    def learned(self, uid: str) -> Learned | None:
        """What a decision may use; None before the first reading."""
        tier = self._tiers.get(uid)
        if tier is None or tier.reading is None:
            return None
        return Learned(tier.memory, tier.reading)

    async def look(self) -> None:
        """One reading of every tier; others get the loop in between."""
        bodies = list(self.store.all(TIER).values())
        uids = {body["metadata"]["uid"] for body in bodies}
        for uid in [uid for uid in self._tiers if uid not in uids]:
            del self._tiers[uid]
        for number, body in enumerate(bodies):
            self._look_at(body)
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)

    def _look_at(self, body: Json) -> None:
        """One tier; what is wrong with it neither ends the process nor blinds it to the others."""
        meta = body["metadata"]
        ref = TierRef(meta["namespace"], meta["name"])
        try:
            tier = self._known(body)
            if tier is not None:
                self._read(ref, tier)
        except Exception as error:  # the outermost frame for one tier
            log.exception("learning.bug", tier=str(ref), error=str(error))
            self.on_bug(type(error).__name__)
            self._tiers.pop(meta["uid"], None)  # what it remembers may be the reason

    def _known(self, body: Json) -> _Tier | None:
        """With the tier's spec and status, parsed only when they changed; None: spec invalid."""
        uid, version = body["metadata"]["uid"], body["metadata"].get("resourceVersion", "")
        tier = self._tiers.get(uid)
        if tier is not None and tier.version == version:
            return tier
        try:
            spec = parse.stored_tier(body)
        except errors.SpecInvalid:
            return None  # the reconciler says so
        status = parse.parse_status(body)
        if tier is None:
            memory = learned.from_status(status.learned, status.scaling.idle_since)
            now_s, read_at = self.clock.now().timestamp(), self.clock.monotonic()
            tier = self._tiers[uid] = _Tier(memory, now_s, read_at, spec, status)
        tier.version, tier.spec, tier.status = version, spec, status
        return tier

    def _read(self, ref: TierRef, tier: _Tier) -> None:
        now_s, read_at = self.clock.now().timestamp(), self.clock.monotonic()
        passed_s, set_s = read_at - tier.read_at, now_s - tier.at_s - (read_at - tier.read_at)
        if passed_s <= 0:
            return
        tier.read_at = read_at
        if abs(set_s) > CLOCK_STEP_S:
            log.warning("learning.clock_set", tier=str(ref), by_s=round(set_s, 1))
            tier.memory, tier.reading = sizing.clock_set(tier.memory, now_s), None
            tier.at_s, tier.pods = now_s, {}
            return
        demands, _ = self.demand.fresh(ref)
        parked = sum(d.parked for d in demands)
        rules = sizing_rules(tier.spec, tier.status)
        reading = self._reading(ref, tier, rules, now_s, passed_s, parked)
        tier.at_s, tier.parked = now_s, parked
        if reading.blind:
            tier.memory, tier.reading = sizing.blinded(tier.memory, now_s), None
            return
        tier.memory, tier.reading = sizing.learn(tier.memory, reading, rules), reading
        need = sizing.need(tier.memory, reading, rules)
        wanted = 0 if need is None else math.ceil(need.now)
        if sizing.step_down_due(tier.memory):
            wanted = -wanted  # another decision, although the same is needed
        minute_over = tier.memory.minute_began_s == now_s
        if wanted != tier.wanted or (
            minute_over
            and learned.worth_writing(tier.status.learned, tier.memory, self.clock.now())
        ):
            tier.wanted = wanted
            self.on_change(ref)

    def _reading(
        self,
        ref: TierRef,
        tier: _Tier,
        rules: sizing.Rules,
        now_s: float,
        passed_s: float,
        parked: int,
    ) -> sizing.Reading:
        pods: dict[str, _Seen] = {}
        paces: list[Pace] = []
        full = sizing.full(tier.memory, rules)
        finished = tokens = arrived = busy_s = 0.0
        running = waiting = ready = starting = known = unknown = 0
        for pod in self.store.of_tier(POD, ref):
            pod_uid = pod["metadata"]["uid"]
            if pod["metadata"].get("deletionTimestamp") is not None:
                continue
            up = is_ready(pod)
            ready, starting = ready + up, starting + (not up)
            sample = self.scraper.sample_of(pod_uid)
            before = tier.pods.get(pod_uid)
            if sample is None:
                unknown += up
                if before is not None:
                    pods[pod_uid] = before  # unknown, not gone and not zero
                continue
            pods[pod_uid] = seen = seen_of(sample, now_s)
            known += up
            running, waiting = running + sample.running, waiting + sample.waiting
            load = sample.running if rules.objective is None else seen.in_flight
            busy_s += min(1.0, load / full) * passed_s
            if before is None:
                continue
            paces.append(pace_of(before, seen, rules.objective, passed_s))
            # Of what a replica did while it could not be read, this reading's share: else all of it
            # would look like a burst.
            share = min(1.0, passed_s / (now_s - before.at_s))
            done = share * growth(before.finished, seen.finished)
            finished += done
            tokens += share * growth(before.tokens, seen.tokens)
            refused = share * growth(before.rejected, seen.rejected)
            arrived += done + refused + seen.in_flight - before.in_flight
        tier.pods = pods
        tier.memory = sizing.paced(tier.memory, paces, passed_s, rules)
        return sizing.Reading(
            at_s=now_s,
            # What a gateway releases leaves the parked and joins those in flight: it came once.
            arrived=max(0.0, arrived + parked - tier.parked),
            finished=finished,
            tokens=tokens,
            busy_s=busy_s,
            up_s=known * passed_s,
            waiting=waiting + parked,
            running=running,
            ready=ready,
            starting=starting,
            unknown=unknown,
        )


def seen_of(sample: Sample, at_s: float) -> _Seen:
    return _Seen(
        at_s,
        sample.ttft,
        sample.itl,
        sample.preempted_total,
        sample.kv_use,
        sample.running,
        sample.finished_total,
        sample.rejected_total,
        sample.tokens_total,
        sample.running + sample.waiting,
    )


def pace_of(before: _Seen, seen: _Seen, objective: Objective | None, passed_s: float) -> Pace:
    """How one replica fared between two readings."""
    room = None
    if seen.kv_use is not None:
        preempted = growth(before.preempted, seen.preempted) > 0
        room = not (preempted and seen.kv_use >= KV_FULL)
    if objective is None:
        return Pace((before.running + seen.running) / 2, passed_s, None, None, room)
    ttft, itl = grown(before.ttft, seen.ttft), grown(before.itl, seen.itl)
    return Pace(
        in_flight=(before.in_flight + seen.in_flight) / 2,
        up_s=passed_s,
        ttft=None if ttft is None else in_time(ttft, objective.ttft_s),
        itl=None if itl is None else in_time(itl, objective.itl_s),
        room=room,
    )


def growth(before: float, after: float) -> float:
    """Of a counter: one that went back began anew at zero, so all it shows is new. Never negative."""
    return after - before if after >= before else after
