"""Replays a workload through an autoscaling policy: a fluid queue, one cold start, exact lateness.

Work waits in one queue, first in first out, and every ready replica takes one second of it per
second. A replica is paid from its launch, is ready one cold start later, and goes at once when it
is let go. A policy sees the past only, through `Signals`; `oracle` alone is handed the workload.
Called by `spotinference simulate autoscale` and by the benchmarks.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from spotinference.simulate.autoscale_service import Service
from spotinference.simulate.autoscale_workload import Arrivals

TICK_S = 5.0
WARM_START_S = 300.0
WARM_UTILISATION = 0.7
"""Every replay begins with the replicas that are this full under the mean load of this first time."""
FLAP_S = 1800.0
"""A scale action within this time of one in the other direction is a flap."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What an operator can see: sums since the last decision, and gauges of now."""

    at_s: float
    arrived: float
    served: float
    served_tokens: float
    busy_s: float
    """replica-seconds of work done since the last decision"""
    up_s: float
    """replica-seconds for which replicas were ready since the last decision"""
    running_s: float
    """request-seconds in flight since the last decision"""
    waiting: float
    running: float
    concurrency: float
    """requests in flight on a full replica"""
    ready: int
    starting: int

    @property
    def current(self) -> int:
        return self.ready + self.starting

    @property
    def utilisation(self) -> float:
        return self.busy_s / self.up_s if self.up_s > 0 else 0.0


class Policy(Protocol):
    every_s: float
    """time between two decisions"""

    def decide(self, signals: Signals) -> int:
        """Replicas wanted, before the tier's bounds."""


@dataclass(frozen=True, slots=True)
class Setup:
    service: Service
    cold_start_s: float
    least: int = 1
    most: int = 0
    """0: no bound"""
    late_after_s: float = 10.0
    first: float = 0.0
    last: float = 1.0
    """share of the workload that is scored; what lies before it is replayed and learned from"""

    def bounded(self, wanted: int) -> int:
        wanted = max(self.least, wanted)
        return min(wanted, self.most) if self.most else wanted


@dataclass(frozen=True, slots=True)
class Action:
    at_s: float
    before: int
    after: int


@dataclass(slots=True)
class Timeline:
    """Per tick of the whole replay; `late` are requests that arrived then and waited too long."""

    tick_s: float
    requests: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    paid: list[int] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The figures of the scored part."""

    replica_hours: float
    late_fraction: float
    requests: float
    late: float
    wakes: int
    scale_actions_per_hour: float
    flaps: int


@dataclass(slots=True)
class _Fleet:
    cold_start_s: float
    ready: int
    starting: int = 0
    _launches: deque[tuple[float, int]] = field(default_factory=deque)
    """when each launch will be ready, and how many replicas it was of: a policy that runs away
    launches millions at once"""

    @property
    def count(self) -> int:
        return self.ready + self.starting

    def advance(self, now: float) -> None:
        while self._launches and self._launches[0][0] <= now:
            _, launched = self._launches.popleft()
            self.starting -= launched
            self.ready += launched

    def resize(self, wanted: int, now: float) -> None:
        """Those that still start are called off first, the newest before the others."""
        if wanted > self.count:
            launched = wanted - self.count
            self._launches.append((now + self.cold_start_s, launched))
            self.starting += launched
        while self.count > wanted and self._launches:
            at_s, launched = self._launches.pop()
            kept = max(0, launched - (self.count - wanted))
            self.starting -= launched - kept
            if kept:
                self._launches.append((at_s, kept))
        self.ready -= max(0, self.count - wanted)


@dataclass(slots=True)
class _Queue:
    """First in, first out: (work, requests, tokens) of each tick's arrivals that are not served."""

    cohorts: deque[list[float]] = field(default_factory=deque)
    work: float = 0.0
    requests: float = 0.0

    def add(self, work: float, requests: float, tokens: float) -> None:
        if work > 0:
            self.cohorts.append([work, requests, tokens])
            self.work += work
            self.requests += requests

    def serve(self, capacity: float) -> tuple[float, float, float]:
        """Takes up to `capacity` work; work, requests and tokens that were served."""
        done = requests = tokens = 0.0
        while self.cohorts and done < capacity:
            head = self.cohorts[0]
            part = min(1.0, (capacity - done) / head[0])
            done += part * head[0]
            requests += part * head[1]
            tokens += part * head[2]
            if part >= 1.0:
                self.cohorts.popleft()
                continue
            head[:] = [(1 - part) * value for value in head]
            break
        self.work = max(0.0, self.work - done) if self.cohorts else 0.0
        self.requests = max(0.0, self.requests - requests) if self.cohorts else 0.0
        return done, requests, tokens


def replay(arrivals: Arrivals, setup: Setup, policy: Policy) -> Timeline:
    """The whole workload, tick by tick; requests that wait at the end are followed to their end."""
    tick, service = arrivals.tick_s, setup.service
    works = [
        service.work(n, p, o)
        for n, p, o in zip(
            arrivals.requests, arrivals.prompt_tokens, arrivals.output_tokens, strict=True
        )
    ]
    end = round(setup.last * len(works))
    fleet = _Fleet(setup.cold_start_s, setup.bounded(_first_size(works, tick)))
    queue, line = _Queue(), Timeline(tick, arrivals.requests[:end])
    every = max(1, round(policy.every_s / tick))
    total_in = total_out = 0.0
    work_in, work_out = [0.0], [0.0]
    seen = [0.0] * 6
    running = 0.0
    for i in range(end):
        now = i * tick
        fleet.advance(now)
        if i % every == 0:
            signals = Signals(
                at_s=now,
                arrived=seen[0],
                served=seen[1],
                served_tokens=seen[2],
                busy_s=seen[3],
                up_s=seen[4],
                running_s=seen[5],
                waiting=queue.requests,
                running=running,
                concurrency=service.concurrency,
                ready=fleet.ready,
                starting=fleet.starting,
            )
            seen = [0.0] * 6
            _act(fleet, setup, line, policy.decide(signals), queue, now)
        n, tokens = arrivals.requests[i], arrivals.output_tokens[i]
        queue.add(works[i], n, tokens)
        done, served, served_tokens = queue.serve(fleet.ready * tick)
        up = fleet.ready * tick
        running = fleet.ready * service.running(done / up) if done > 0 else 0.0
        for k, value in enumerate((n, served, served_tokens, done, up, running * tick)):
            seen[k] += value
        total_in += works[i]
        total_out += done
        work_in.append(total_in)
        work_out.append(total_in if queue.work == 0 else total_out)
        line.ready.append(fleet.ready)
        line.paid.append(fleet.count)
        line.waiting.append(queue.requests)
    _follow_out(work_out, total_in, fleet, setup.late_after_s, tick, end)
    line.late = late_requests(line.requests, work_in, work_out, setup.late_after_s / tick)
    return line


def _first_size(works: list[float], tick: float) -> int:
    first = works[: max(1, round(WARM_START_S / tick))]
    load = sum(first) / (len(first) * tick)
    return math.ceil(load / WARM_UTILISATION)


def _act(
    fleet: _Fleet, setup: Setup, line: Timeline, wanted: int, queue: _Queue, now: float
) -> None:
    if queue.requests > 0 and wanted < 1:
        wanted = 1  # a held request wakes the tier, whatever the policy says
    wanted = setup.bounded(wanted)
    if wanted != fleet.count:
        line.actions.append(Action(now, fleet.count, wanted))
        fleet.resize(wanted, now)


def _follow_out(
    work_out: list[float],
    total_in: float,
    fleet: _Fleet,
    late_after_s: float,
    tick: float,
    end: int,
) -> None:
    """Goes on without arrivals or decisions for as long as a request of the last tick may wait."""
    for i in range(end, end + int(late_after_s / tick) + 2):
        fleet.advance(i * tick)
        work_out.append(min(total_in, work_out[-1] + fleet.ready * tick))


def late_requests(
    requests: list[float], work_in: list[float], work_out: list[float], delay_ticks: float
) -> list[float]:
    """Requests per tick whose work had not been served `delay_ticks` after they arrived.

    Within a tick arrivals and service are straight lines (the service of a tick's arrivals lies in
    two ticks), so the late part is where one line is above the other: exact, no sampling.
    """
    late = [0.0] * len(requests)
    whole = int(delay_ticks)
    part = delay_ticks - whole
    for i, count in enumerate(requests):
        if count <= 0:
            continue
        in0, in1 = work_in[i], work_in[i + 1]
        out0, out1, out2 = work_out[i + whole : i + whole + 3]
        middle_in = in0 + (1 - part) * (in1 - in0)
        start, end = out0 + part * (out1 - out0), out1 + part * (out2 - out1)
        tiny = 1e-9 * max(1.0, in1)
        if start >= in0 - tiny and out1 >= middle_in - tiny and end >= in1 - tiny:
            continue
        before = (1 - part) * _below(start - in0, out1 - middle_in)
        late[i] = count * (before + part * _below(out1 - middle_in, end - in1))
    return late


def _below(first: float, last: float) -> float:
    """Share of a straight line from `first` to `last` that is below zero."""
    if first >= 0 and last >= 0:
        return 0.0
    if first < 0 and last < 0:
        return 1.0
    return abs(min(first, last)) / (abs(first) + abs(last))


def score(line: Timeline, setup: Setup) -> Outcome:
    """The figures of the share [first, last] of the workload, whose replay ended at `last`."""
    return figures(line, setup.first / setup.last)


def figures(line: Timeline, first: float = 0.0, last: float = 1.0) -> Outcome:
    """Of the share [first, last] of a timeline."""
    start, end = round(first * len(line.paid)), round(last * len(line.paid))
    tick = line.tick_s
    hours = (end - start) * tick / 3600
    requests, late = sum(line.requests[start:end]), sum(line.late[start:end])
    actions = [a for a in line.actions if start * tick <= a.at_s < end * tick]
    return Outcome(
        replica_hours=sum(line.paid[start:end]) * tick / 3600,
        late_fraction=late / requests if requests else 0.0,
        requests=requests,
        late=late,
        wakes=sum(a.before == 0 for a in actions),
        scale_actions_per_hour=len(actions) / hours if hours else 0.0,
        flaps=flaps(actions),
    )


def flaps(actions: list[Action]) -> int:
    """Actions that turn back within `FLAP_S` of the one before."""
    return sum(
        after.at_s - before.at_s <= FLAP_S
        and (after.after > after.before) != (before.after > before.before)
        for before, after in pairwise(actions)
    )
