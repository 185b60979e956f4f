"""Autoscaling on public workloads: every policy, both halves, ablations, sleep, decision time.

    python -m benchmarks.policies.autoscale [--traces DIR] [--out DIR] [--quick] [--json]

Cold start 480 s, 2 requests/s per replica, late after 10 s, 1 replica at least. One replay per
policy and workload over all of it; the first half is what the policy was tuned on, the second half
is what it is judged by (it has lived through the first). Prints tables, writes autoscale.png.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.policies import workloads
from benchmarks.policies.autoscale_plot import plot
from benchmarks.report import Report
from spotinference.core import forecast, idle, sizing
from spotinference.simulate import autoscale as simulator
from spotinference.simulate import autoscale_workload
from spotinference.simulate.autoscale import Outcome, Setup, Timeline
from spotinference.simulate.autoscale_ours import Ours
from spotinference.simulate.autoscale_run import POLICIES, rules, run
from spotinference.simulate.autoscale_service import ConstantRate
from spotinference.simulate.autoscale_workload import Arrivals

CLIENTS = ("all", "11", "18", "19", "29", "31", "35", "36", "41")
"""All clients at a hundredth, and those with 6 to 19 requests/s that are active most of the time."""
QUICK = ("all", "31")
SHOWN = "31"
SETUP = Setup(ConstantRate(2.0), cold_start_s=480.0)
HALVES = ((0.0, 0.5, "tuned on"), (0.5, 1.0, "judged by"))
WAKE_COST_S, IDLE_TIMEOUT_S = 480.0, 600.0
SEED = "arrivals seeded by the client's name"


@dataclass(slots=True)
class Sum:
    hours: float = 0.0
    late: float = 0.0
    requests: float = 0.0
    actions: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.hours += outcome.replica_hours
        self.late += outcome.late
        self.requests += outcome.requests
        self.actions += outcome.scale_actions_per_hour


def compare(loads: dict[str, Arrivals]) -> tuple[Report, dict[str, Timeline]]:
    """Every policy on every workload; the timelines of the one that is plotted."""
    report = Report(f"autoscaling, cold start 480 s, 2 requests/s per replica; {SEED}")
    sums: dict[tuple[str, str], Sum] = {}
    shown: dict[str, Timeline] = {}
    for name, arrivals in loads.items():
        for policy in POLICIES:
            began = time.perf_counter()
            _, line = run(policy, arrivals, SETUP)
            took = time.perf_counter() - began
            if name == SHOWN:
                shown[policy] = line
            for first, last, half in HALVES:
                found = simulator.figures(line, first, last)
                sums.setdefault((half, policy), Sum()).add(found)
                report.row(**_row(name, half, policy, found), replay_s=took)
    for (half, policy), total in sums.items():
        whole = Outcome(
            total.hours, total.late / total.requests, 0, 0, 0, total.actions / len(loads), 0
        )
        report.row(**_row("together", half, policy, whole), replay_s="")
    judged = {policy: sums["judged by", policy] for policy in POLICIES}
    verdicts(report, judged)
    whole_operator = judged | {"ours": judged["operator"]}
    report.facts["the whole operator with its defaults, beside the same"] = ", ".join(
        f"{name} {value:.2f}" for name, value in ratios(whole_operator).items()
    )
    return report, shown


def verdicts(report: Report, total: dict[str, Sum]) -> None:
    """The bars, on all workloads together, second half."""
    bars = {"late / HPA": 1 / 3, "hours / HPA": 1.1, "hours / oracle": 1.15, "actions / HPA": 0.5}
    for name, value in ratios(total).items():
        report.expect(value <= bars[name], f"{name} at most {bars[name]:.2f}: {value:.2f}")


def ratios(total: dict[str, Sum]) -> dict[str, float]:
    ours, hpa, oracle = total["ours"], total["hpa"], total["oracle"]
    return {
        "late / HPA": ours.late / hpa.late,
        "hours / HPA": ours.hours / hpa.hours,
        "hours / oracle": ours.hours / oracle.hours,
        "actions / HPA": ours.actions / hpa.actions,
    }


def _row(load: str, half: str, policy: str, found: Outcome) -> dict[str, object]:
    return {
        "workload": load,
        "half": half,
        "policy": policy,
        "replica_hours": f"{found.replica_hours:,.0f}",
        "late": f"{found.late_fraction:.3%}",
        "actions_per_hour": f"{found.scale_actions_per_hour:.2f}",
    }


def ablations(loads: dict[str, Arrivals]) -> Report:
    """Ours without one of its parts each, on all workloads together, second half."""
    report = Report("ours without one part, all workloads together, second half")
    base = rules(SETUP)
    present = forecast.Switches(experts=(forecast.USUAL,))
    kinds = {
        "whole": base,
        "without forecast": replace(base, switches=present),
        "without pending": replace(base, pending=False),
        "without drain term": replace(base, drain=False),
    }
    for name, changed in kinds.items():
        total = Sum()
        for arrivals in loads.values():
            line = simulator.replay(arrivals, SETUP, Ours(changed))
            total.add(simulator.figures(line, 0.5, 1.0))
        report.row(
            policy=name,
            replica_hours=f"{total.hours:,.0f}",
            late=f"{total.late / total.requests:.3%}",
            actions_per_hour=f"{total.actions / len(loads):.2f}",
        )
    return report


def sleep(files: list[Path]) -> Report:
    """Idle times of each client: what the learned wait costs against a clairvoyant."""
    report = Report(
        f"scale to zero, a wake costs {WAKE_COST_S:.0f} replica-seconds, idleTimeout "
        f"{IDLE_TIMEOUT_S:.0f} s; idle times of at least {idle.SHORTEST_S:.0f} s, second half"
    )
    ratios = []
    learned = fixed = best = 0.0
    for path in files:
        cost, simple, least = _idle_costs(path)
        if least > 0:
            ratios.append(cost / least)
            learned, fixed, best = learned + cost, fixed + simple, best + least
    report.facts["clients with idle times"] = len(ratios)
    report.facts["waiting one wake's cost, all clients together"] = f"{fixed / best:.2f}"
    report.facts["ratio per client: median, worst"] = (
        f"{statistics.median(ratios):.2f}, {max(ratios):.2f}"
    )
    report.expect(
        learned <= 1.5 * best,
        f"at most 1.5 x the ski-rental optimum, all clients together: {learned / best:.2f}",
    )
    return report


def _idle_costs(path: Path) -> tuple[float, float, float]:
    """Replica-seconds of the second half: learned, with a fixed wait, clairvoyant."""
    bins = autoscale_workload.load(path)
    half = (bins[0].start_s + bins[-1].end_s) / 2
    busy_until: float | None = None
    times = idle.IdleTimes()
    learned = fixed = best = 0.0
    for b in bins:
        if b.requests <= 0:
            continue
        gap = 0.0 if busy_until is None else b.start_s - busy_until
        busy_until = b.end_s
        if gap < idle.SHORTEST_S:
            continue
        wait = idle.sleep_after_s(times, WAKE_COST_S, IDLE_TIMEOUT_S)
        if b.start_s >= half:
            learned += gap if gap <= wait else wait + WAKE_COST_S
            fixed += gap if gap <= WAKE_COST_S else 2 * WAKE_COST_S
            best += min(gap, WAKE_COST_S)
        times = idle.observe(times, gap)
    return learned, fixed, best


def decision_time(arrivals: Arrivals, tiers: int = 1000) -> Report:
    """1,000 tiers that have lived a day each decide once every 10 s; the slowest of a minute."""
    policy = Ours(rules(SETUP))
    part = Arrivals(arrivals.tick_s, *(values[:20_000] for values in _columns(arrivals)))
    simulator.replay(part, SETUP, policy)
    at = 20_000 * arrivals.tick_s
    memories = [policy.memory] * tiers
    rounds = []
    for step in range(1, 7):
        reading = sizing.Reading(at + 10 * step, 120, 120, 30_000, 60, 80, 5, 48, 6, 2)
        began = time.perf_counter()
        for i, memory in enumerate(memories):
            memories[i] = sizing.learn(memory, reading, policy.rules)
            sizing.size(memories[i], reading, policy.rules)
        rounds.append(time.perf_counter() - began)
    report = Report("decision time")
    report.facts["per tier, mean"] = f"{statistics.mean(rounds) / tiers * 1e6:.0f} us"
    report.facts[f"{tiers:,} tiers in one tick: usual, with the forecast of each minute"] = (
        f"{statistics.median(rounds):.3f} s, {max(rounds):.3f} s"
    )
    return report


def _columns(arrivals: Arrivals) -> tuple[list[float], list[float], list[float]]:
    return arrivals.requests, arrivals.prompt_tokens, arrivals.output_tokens


@dataclass(frozen=True, slots=True)
class Section:
    """Several reports that are printed as one."""

    reports: list[Report]
    plots: list[Path]

    def print(self, *, as_json: bool) -> int:
        code = max(report.print(as_json=as_json) for report in self.reports)
        for path in self.plots:
            print(f"plot: {path}", file=sys.stderr)
        return code


def measure(traces: Path, out: Path, *, quick: bool = False) -> Section | None:
    """`traces`: the folder with workload/. None, with a sentence, where that is absent."""
    if not (traces / "workload").is_dir():
        print(f"no folder {traces / 'workload'}: autoscaling is not measured (--traces names it)")
        return None
    files = {p.stem: p for p in workloads.convert(traces / "workload", out / "workloads", 10)}
    names = [f"servegen-{c}" for c in (QUICK if quick else CLIENTS)]
    names += [] if quick else ["azure", "mooncake"]
    loads = {
        name.removeprefix("servegen-"): autoscale_workload.spread(
            autoscale_workload.load(files[name]), simulator.TICK_S
        )
        for name in names
        if name in files
    }
    report, shown = compare(loads)
    clients = [p for name, p in files.items() if name.startswith("servegen-") and "all" not in name]
    reports = [report, ablations(loads), sleep(clients), decision_time(next(iter(loads.values())))]
    plots = []
    if shown:
        plots.append(out / "autoscale.png")
        plot(shown, plots[0], f"ServeGen client {SHOWN}")
    return Section(reports, plots)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"))
    parser.add_argument("--out", type=Path, default=Path("build/policies"), help="for the plots")
    parser.add_argument("--quick", action="store_true", help="two workloads instead of eleven")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    section = measure(options.traces, options.out, quick=options.quick)
    return 0 if section is None else section.print(as_json=options.as_json)


if __name__ == "__main__":
    sys.exit(main())
