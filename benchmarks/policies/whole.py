"""A whole tier, replayed: ours beside SpotHedge with one spare under an HPA.

    python -m benchmarks.policies whole [--traces DIR] [--json]

The tier, pools and day of `examples/simulate`, also on public spot traces and with public workloads;
both policies from the same hour of the trace with the same seed. Nothing here must hold: what is
dearer or later than the rival is printed as such.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.policies import workloads
from benchmarks.policies.spot import SETS
from benchmarks.report import Report
from spotinference.cli import simulate_tier
from spotinference.core.observed import Market
from spotinference.simulate import autoscale_service, autoscale_workload, rivals, tier, traces
from spotinference.simulate.autoscale_workload import Bin
from spotinference.simulate.operated import Operated

EXAMPLE = Path(__file__).parents[2] / "examples" / "simulate"
SPOT, STEADY = "replayed-spot", "replayed-on-demand"
SEED, TICK_S = 0, 10.0
COLD_START_S, SLOW_S = 180.0, 360.0
"""Half of it until there is a node, half until its engine is ready."""
RATE, ANSWER_S = 2.0, 10.0
"""Requests/s that one replica serves, and how long a busy one takes for an answer."""
AWAKE = {"min_replicas": 1}
BIN_S = 60
DAY = 86_400 // BIN_S
CLIENTS = {"all clients": ("servegen-all", 5.0), "client 39": ("servegen-39", 1.0)}
"""Of ServeGen: the file that `workloads` makes of them, and requests/s of one replica."""


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    bins: tuple[Bin, ...]
    trace: str | None = None
    """a set of spot traces; None: the example's zones"""
    hour: float = 0.0
    scaling: dict[str, Any] = dataclasses.field(default_factory=dict)
    cold_start_s: float = COLD_START_S
    rate: float = RATE


def cases(folder: Path) -> Iterator[Case]:
    """The public workloads are left out where they are absent."""
    day = tuple(autoscale_workload.load(EXAMPLE / "day.csv"))
    yield Case("the day as it is", day)
    yield Case("the day, minReplicas 1", day, scaling=AWAKE)
    yield Case("the day, cold start 360 s", day, cold_start_s=SLOW_S)
    yield Case("AWS1, 60", day, "AWS1", 60)
    yield Case("AWS1, 60, minReplicas 1", day, "AWS1", 60, AWAKE)
    yield Case("AWS1, 60, minReplicas 3", day, "AWS1", 60, {"min_replicas": 3})
    yield Case("AWS1, 120, minReplicas 1", day, "AWS1", 120, AWAKE)
    for name, hour in (
        ("AWS3", 0),
        ("AWS3", 300),
        ("AWS3", 1100),
        ("SkyPilot", 0),
        ("SkyPilot", 80),
    ):
        yield Case(f"{name}, {hour}, minReplicas 1", day, name, hour, AWAKE)
    found = _workloads(folder)
    for who, (file, rate) in CLIENTS.items():
        bins = found.get(file, [])
        scaling = {**AWAKE, "target_running": round(rate * ANSWER_S * 0.8)}
        for number, name, hour in ((2, "AWS1", 100), (8, "AWS3", 900)) if bins else ():
            part = _day(bins, number)
            label = f"{who}, day {number}, {name}, {hour}"
            yield Case(label, part, name, hour, scaling, rate=rate)
    small = tuple(_scaled(day, 1 / 8))
    yield Case("an eighth of the day, maxReplicas 1", small, scaling={"max_replicas": 1})
    yield Case("the same, AWS3, 0", small, "AWS3", 0, {"max_replicas": 1})


def _workloads(folder: Path) -> dict[str, list[Bin]]:
    if not (folder / "workload").is_dir():
        return {}
    with tempfile.TemporaryDirectory() as out:
        files = workloads.convert(folder / "workload", Path(out), BIN_S)
        wanted = [file for file in files if file.stem in {name for name, _ in CLIENTS.values()}]
        return {file.stem: list(autoscale_workload.load(file)) for file in wanted}


def _day(bins: list[Bin], number: int) -> tuple[Bin, ...]:
    part = bins[number * DAY : (number + 1) * DAY]
    start_s = part[0].start_s
    return tuple(
        dataclasses.replace(b, start_s=b.start_s - start_s, end_s=b.end_s - start_s) for b in part
    )


def _scaled(bins: tuple[Bin, ...], share: float) -> Iterator[Bin]:
    for b in bins:
        yield dataclasses.replace(
            b,
            requests=b.requests * share,
            prompt_tokens=b.prompt_tokens * share,
            output_tokens=b.output_tokens * share,
        )


def setup(case: Case, folder: Path) -> tier.Setup | None:
    """None where its spot traces are absent."""
    spec, pools = simulate_tier.read(EXAMPLE / "tier.yaml", EXAMPLE / "pools.yaml")
    if case.trace is None:
        files = {zone: EXAMPLE / f"{zone}.json" for zone in pools[SPOT].zones}
    else:
        found = sorted((folder / SETS[case.trace]).glob("*.json"))
        files = {file.stem.split("_")[0]: file for file in found}
        pools = {**pools, SPOT: pools[SPOT].model_copy(update={"zones": list(files)})}
    if not files:
        return None
    scaling = spec.scaling.model_copy(update=case.scaling)
    return tier.Setup(
        spec=spec.model_copy(update={"scaling": scaling}),
        pools=pools,
        capacity={Market(SPOT, zone): traces.load([file])[0] for zone, file in files.items()},
        arrivals=autoscale_workload.spread(list(case.bins), TICK_S),
        service=autoscale_service.ConstantRate(case.rate, case.rate * ANSWER_S),
        boot_s=case.cold_start_s / 2,
        load_s=case.cold_start_s / 2,
        seed=SEED,
        begin_s=case.hour * 3600,
    )


def measure(folder: Path, _: Path) -> Report:
    report = Report(f"whole tiers, cold start {COLD_START_S:g} s, seed {SEED}")
    for case in cases(folder):
        replayed = setup(case, folder)
        if replayed is None:
            print(f"no traces of {case.trace}: {case.name} is not replayed")
            continue
        print(f"{case.name} …", file=sys.stderr)
        spots = [Market(SPOT, zone) for zone in replayed.pools[SPOT].zones]
        steady = Market(STEADY, replayed.pools[STEADY].zones[0])
        ours = tier.replay(replayed, Operated(replayed.spec, replayed.pools))
        rival = tier.replay(replayed, rivals.SpotHedgeHpa(replayed, spots, steady))
        report.row(
            case=case.name,
            ours=_shown(ours),
            rival=_shown(rival),
            cost_ratio=f"{ours.usd / rival.usd:.2f}",
            verdict=_verdict(ours, rival),
        )
    return report


def _late(outcome: tier.Outcome) -> float:
    """Share of requests that were late, refused or cut."""
    t = outcome.tally
    return (t.late + t.refused + t.cut) / t.requests


def _shown(outcome: tier.Outcome) -> str:
    return f"${outcome.usd:.2f}, {_late(outcome):.2%}"


def _verdict(ours: tier.Outcome, rival: tier.Outcome) -> str:
    cheaper, no_later = ours.usd < rival.usd, _late(ours) <= _late(rival)
    return {(True, True): "better", (True, False): "cheaper, later"}.get(
        (cheaper, no_later), "dearer"
    )
