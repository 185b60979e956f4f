"""Autoscaling policies that others publish, as their documents describe them: what we compare with.

- `Hpa`: Kubernetes' HorizontalPodAutoscaler v2 on utilisation.
- `Kpa`: Knative's autoscaler, average concurrency over a stable and a panic window.
- `KedaWaiting`: KEDA on `num_requests_waiting` alone, the recipe most vLLM guides give.
- `StaticPeak`: the most that is ever needed, all the time.
- `Oracle`: the workload is known, one cold start ahead.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from spotinference.simulate.autoscale import Signals

TARGET_UTILISATION = 0.7
"""HPA and Knative's own default (70 %)."""
TARGET_WAITING = 5.0
"""Waiting requests per replica: the threshold of the usual KEDA and production-stack examples."""


@dataclass(slots=True)
class Hpa:
    """kubernetes/pkg/controller/podautoscaler: sync 15 s, tolerance 0.1, down window 300 s.

    Utilisation is what a GPU's metrics give: how much of the ready replicas' time was work, never
    above 1, so a queue is seen only as full replicas. Replicas that still start count as at 0 % when scaling up (the metric then is averaged over
    them too), and are left out otherwise. At most the greater of 4 and 100 % are added per 15 s.
    """

    every_s: float = 15.0
    tolerance: float = 0.1
    down_window_s: float = 300.0
    _wanted: deque[tuple[float, int]] = field(default_factory=deque)

    def decide(self, signals: Signals) -> int:
        wanted = self._recommended(signals)
        limit = max(signals.current + 4, 2 * signals.current)
        wanted = min(wanted, limit)
        self._wanted.append((signals.at_s, wanted))
        while self._wanted[0][0] < signals.at_s - self.down_window_s:
            self._wanted.popleft()
        if wanted < signals.current:
            wanted = min(signals.current, max(w for _, w in self._wanted))
        return wanted

    def _recommended(self, signals: Signals) -> int:
        if signals.ready == 0:
            return signals.current  # no ready pod, no metric: it leaves the number as it is
        return self._for(signals, signals.utilisation / TARGET_UTILISATION)

    def _for(self, signals: Signals, ratio: float) -> int:
        """One metric: `ratio` is its mean over ready replicas against its target."""
        ready, current = signals.ready, signals.current
        if abs(ratio - 1.0) <= self.tolerance:
            return current
        if signals.starting == 0 or ratio < 1.0:
            return math.ceil(ratio * ready)
        spread = ratio * ready / current
        if spread <= 1.0 + self.tolerance:
            return current
        return max(current, math.ceil(spread * current))


@dataclass(slots=True)
class Kpa:
    """knative/serving autoscaler: 60 s stable window, panic window a tenth of it, target 70 %.

    Panic when the short window wants twice what is ready: then only up, until the stable window
    has passed without it. The replay's tick makes the panic window 5 s instead of 6.
    """

    every_s: float = 5.0
    stable_s: float = 60.0
    panic_s: float = 5.0
    _seen: deque[tuple[float, float]] = field(default_factory=deque)
    _panic_until: float = -1.0
    _most: int = 0

    def decide(self, signals: Signals) -> int:
        now = signals.at_s
        self._seen.append((now, signals.running + signals.waiting))
        while self._seen[0][0] <= now - self.stable_s:
            self._seen.popleft()
        target = TARGET_UTILISATION * signals.concurrency
        stable = math.ceil(sum(c for _, c in self._seen) / len(self._seen) / target)
        recent = [c for at, c in self._seen if at > now - self.panic_s]
        panic = math.ceil(sum(recent) / len(recent) / target)
        ready = max(1, signals.ready)
        # Knative: max-scale-up-rate 1000 and max-scale-down-rate 2, per decision, of the ready.
        stable = max(stable, ready // 2) if signals.ready else stable
        if panic >= 2 * ready:
            self._panic_until = now + self.stable_s
        if now < self._panic_until:
            self._most = max(self._most, panic, stable, signals.current)
            return self._most
        self._most = 0
        return stable


@dataclass(slots=True)
class KedaWaiting:
    """KEDA feeds the sum of waiting requests to an HPA as an external metric (AverageValue).

    wanted = ceil(sum / threshold), whatever already starts: with a long cold start the queue
    grows all the while, and so does the wish.
    """

    every_s: float = 15.0
    tolerance: float = 0.1
    down_window_s: float = 300.0
    _wanted: deque[tuple[float, int]] = field(default_factory=deque)

    def decide(self, signals: Signals) -> int:
        current = signals.current
        wanted = math.ceil(signals.waiting / TARGET_WAITING)
        ratio = signals.waiting / (TARGET_WAITING * current) if current else 2.0
        if abs(ratio - 1.0) <= self.tolerance:
            wanted = current
        wanted = min(wanted, max(current + 4, 2 * current))
        self._wanted.append((signals.at_s, wanted))
        while self._wanted[0][0] < signals.at_s - self.down_window_s:
            self._wanted.popleft()
        if wanted < current:
            wanted = min(current, max(w for _, w in self._wanted))
        return wanted


@dataclass(slots=True)
class Planned:
    """Replicas known beforehand: by decision, one every `every_s`."""

    plan: list[int]
    every_s: float = 15.0

    def decide(self, signals: Signals) -> int:
        return self.plan[min(len(self.plan) - 1, round(signals.at_s / self.every_s))]


SMOOTH_S = 60.0
"""The clairvoyant policies size for the load of each minute,"""
ORACLE_UTILISATION = 0.8
"""and leave a fifth for the bursts within it."""


def needs(works: list[float], tick_s: float, every_s: float = 15.0) -> list[int]:
    """Per decision: replicas for the load (work per second) of the minute around it."""
    total = [0.0]
    for work in works:
        total.append(total[-1] + work)
    half = max(1, round(SMOOTH_S / 2 / tick_s))
    step = max(1, round(every_s / tick_s))
    found = []
    for i in range(0, len(works), step):
        a, b = max(0, i - half), min(len(works), i + half)
        load = (total[b] - total[a]) / ((b - a) * tick_s)
        found.append(math.ceil(load / ORACLE_UTILISATION - 1e-9))
    return found


def static_peak(works: list[float], tick_s: float) -> Planned:
    """The most that any minute needs, all the time."""
    return Planned([max(needs(works, tick_s))])


def oracle(works: list[float], tick_s: float, cold_start_s: float) -> Planned:
    """As many as any minute within one cold start from now needs.

    What is not launched now is not ready before one cold start, and what is let go is not back.
    """
    every_s = 15.0
    need = needs(works, tick_s, every_s)
    width = math.ceil(cold_start_s / every_s) + 2
    plan = [0] * len(need)
    window: deque[int] = deque()
    for i in reversed(range(len(need))):
        while window and need[window[0]] <= need[i]:
            window.popleft()
        window.appendleft(i)
        while window[-1] >= i + width:
            window.pop()
        plan[i] = need[window[-1]]
    return Planned(plan, every_s)
