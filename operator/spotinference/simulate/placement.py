"""One question of `spotinference simulate spot`, answered: a policy over windows of spot traces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import Any

from spotinference.simulate import baselines, bound
from spotinference.simulate.ours import Ours
from spotinference.simulate.spot import Policy, Replay, Rules, Tally
from spotinference.simulate.traces import Window, Zone, windows

POLICIES = ("ours", "spothedge", "even-spread", "round-robin", "on-demand", "bound")


@dataclass(frozen=True, slots=True)
class Question:
    """Which policy, over which windows of which zones."""

    policy: str
    zones: Sequence[Zone]
    rules: Rules
    windows: int = 10
    window_hours: float = 24.0
    share: tuple[float, float] = (0.0, 1.0)
    history_hours: float = 72.0
    """how far back a policy that learns may have seen before a window begins"""
    extra: int = 1
    """spare replicas of SpotHedge"""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    policy: str
    rules: Rules
    tallies: tuple[Tally, ...]

    @property
    def availability(self) -> float:
        return fmean(t.availability() for t in self.tallies)

    @property
    def cost(self) -> float:
        return fmean(t.cost(self.rules) for t in self.tallies)

    def as_json(self) -> dict[str, Any]:
        """Counts are sums over the windows, shares are means."""
        return {
            "policy": self.policy,
            "availability": self.availability,
            "cost": self.cost,
            "preemptions": sum(t.preemptions for t in self.tallies),
            "launches": sum(t.launches for t in self.tallies),
            "launch_failures": sum(t.launch_failures for t in self.tallies),
            "on_demand_share": fmean(t.on_demand_share() for t in self.tallies),
            "windows": [self._window(t) for t in self.tallies],
        }

    def _window(self, tally: Tally) -> dict[str, Any]:
        return {
            "start_s": tally.start_s,
            "availability": tally.availability(),
            "cost": tally.cost(self.rules),
            "preemptions": tally.preemptions,
            "launches": tally.launches,
            "launch_failures": tally.launch_failures,
            "on_demand_share": tally.on_demand_share(),
        }


def answer(question: Question) -> Answer:
    return Answer(question.policy, question.rules, tuple(replayed(question)))


def replayed(question: Question) -> Iterator[Tally]:
    """The windows one by one, for callers that show progress."""
    history = question.history_hours if question.policy == "ours" else 0.0
    for number, window in enumerate(
        windows(
            question.zones,
            count=question.windows,
            hours=question.window_hours,
            share=question.share,
            tick_s=question.rules.tick_s,
            history_hours=history,
        )
    ):
        yield _one(question, window, Random(f"{question.seed}/{number}"))


def _one(question: Question, window: Window, random: Random) -> Tally:
    if question.policy == "bound":
        return bound.bound(question.rules, window)
    return Replay(question.rules, window, policy_of(question), random).run()


def policy_of(q: Question) -> Policy:
    """The policy made anew, knowing nothing."""
    zones = len(q.zones)
    makers: dict[str, Callable[[], Policy]] = {
        "ours": lambda: Ours(q.rules, q.zones),
        "spothedge": lambda: baselines.SpotHedge(q.rules, zones, q.extra),
        "even-spread": lambda: baselines.EvenSpread(q.rules, zones),
        "round-robin": lambda: baselines.RoundRobin(q.rules, zones),
        "on-demand": lambda: baselines.OnDemand(q.rules),
    }
    return makers[q.policy]()
