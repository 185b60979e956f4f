"""Placement on spot traces: ours beside SpotHedge, simpler baselines and the bound of hindsight.

Ours was tuned on the first half of each trace and is judged on the second; both are shown, the
baselines on the same windows. A goal that is missed is printed as missed; it is no failure.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.policies import spot_plot
from benchmarks.policies.spot_plot import Point
from benchmarks.report import Report
from spotinference.simulate import placement, traces
from spotinference.simulate.placement import Question
from spotinference.simulate.spot import Rules

SETS = {
    "AWS1": "spot/spothedge/AWS1",
    "AWS3": "spot/spothedge/AWS3",
    "SkyPilot": "spot/skypilot-preemption-aws-04-22-2023",
}
GOALS = ("AWS1", "AWS3")
COLD_STARTS_S = (120.0, 480.0)
HALVES = {"tuned on": (0.0, 0.5), "scored": (0.5, 1.0)}
CHOICES = (
    ("even-spread", 1), ("round-robin", 1), ("spothedge", 1), ("spothedge", 2), ("ours", 1),
    ("bound", 1),
)  # fmt: skip
REPLICAS, ON_DEMAND_RATIO, SEED = 3, 3.0, 0
COST_GOAL, GAP_GOAL = 0.75, 0.5
COMPARABLE = 0.99
"""A policy that breaks the promise far more often than its rival closes no gap."""


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    cold_start_s: float
    half: str

    def __str__(self) -> str:
        return f"{self.name} {self.cold_start_s:g} s, {self.half}"


def measure(folder: Path, out: Path) -> Report | None:
    found = {name: sorted((folder / path).glob("*.json")) for name, path in SETS.items()}
    found = {name: files for name, files in found.items() if files}
    if not found:
        print(f"no spot traces below {folder / 'spot'}: placement is not measured")
        return None
    report = Report(
        f"placement: {REPLICAS} replicas, on-demand {ON_DEMAND_RATIO:g} x spot, ten windows of 24 h, "
        f"seed {SEED}"
    )
    points: dict[Case, dict[str, Point]] = {}
    for name, files in found.items():
        zones = traces.load(files)
        for cold_start_s in COLD_STARTS_S:
            for half, share in HALVES.items():
                case = Case(name, cold_start_s, half)
                print(f"{case} …", file=sys.stderr)
                points[case] = _points(zones, cold_start_s, share)
                _rows(report, case, points[case])
    for case, by_policy in points.items():
        if case.half == "scored":
            report.facts[str(case)] = _verdict(case, by_policy)
    plot = out / "spot.png"
    spot_plot.draw({(c.name, c.cold_start_s, c.half): p for c, p in points.items()}, plot)
    report.facts["plot"] = plot
    return report


def _points(
    zones: tuple[traces.Zone, ...], cold_start_s: float, share: tuple[float, float]
) -> dict[str, Point]:
    points = {}
    for policy, extra in CHOICES:
        question = Question(
            policy,
            zones,
            Rules(REPLICAS, cold_start_s, ON_DEMAND_RATIO),
            share=share,
            extra=extra,
            seed=SEED,
        )
        answer = placement.answer(question)
        label = f"{policy}+{extra}" if policy == "spothedge" else policy
        points[label] = Point(answer.cost, answer.availability)
    return points


def _rows(report: Report, case: Case, points: dict[str, Point]) -> None:
    rival, best = points["spothedge+1"], points["bound"]
    for policy, point in points.items():
        report.row(
            trace=case.name,
            cold_s=f"{case.cold_start_s:g}",
            half=case.half,
            policy=policy,
            available=f"{point.availability:.4f}",
            cost=f"{point.cost:.3f}",
            of_spothedge=f"{point.cost / rival.cost:.2f}",
            gap_closed=f"{(rival.cost - point.cost) / (rival.cost - best.cost):.0%}"
            if point.availability >= COMPARABLE * rival.availability
            else "",
        )


def _verdict(case: Case, points: dict[str, Point]) -> str:
    ours, rival, best = points["ours"], points["spothedge+1"], points["bound"]
    ratio = ours.cost / rival.cost
    gap = (rival.cost - ours.cost) / (rival.cost - best.cost)
    met = ratio <= COST_GOAL and gap >= GAP_GOAL and ours.availability >= rival.availability
    text = (
        f"{ratio:.3f} x the cost of SpotHedge+1 at {ours.availability:.4f} against its "
        f"{rival.availability:.4f}, {gap:.0%} of the gap to the bound closed"
    )
    if case.name not in GOALS:
        return text
    return f"{text}; goal {'met' if met else 'MISSED'}"
