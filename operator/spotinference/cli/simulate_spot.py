"""`spotinference simulate spot`: what a placement policy would have cost on spot traces."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from spotinference import errors
from spotinference.simulate import placement, traces
from spotinference.simulate.placement import POLICIES, Answer, Question
from spotinference.simulate.spot import Rules

HELP = """Replay spot traces: how available would N replicas have been, and at what cost?

Each --trace is one zone: {"metadata": {"gap_seconds": 300}, "data": [4, 4, 0, ...]}, the nodes
obtainable at each sample. Every 30 s the policy sees which replicas it has, what was reclaimed and
which launches failed, and launches or ends replicas; it never sees a capacity. A launch without
capacity fails at no cost, everything else is paid from its launch. Zones of different gaps or
lengths are read each at its own gap, over the time that all have in common.

\b
Policies
  ours         what the operator does (core/markets.py, core/buying.py); it may have watched the
               72 hours before each window (--history-hours), as a running operator has
  spothedge    N + --extra on spot, on-demand for those not ready (SkyServe, arXiv 2411.01438)
  even-spread  N spot replicas, the next one always where fewest stand
  round-robin  N spot replicas, each launch in the next zone
  on-demand    N on-demand replicas; bound: the cheapest for somebody who knows the future

\b
Cost is relative to N on-demand replicas all the time; availability is the share of ticks, after
the first cold start, with at least N replicas ready.

\b
  spotinference simulate spot --trace a.json --trace b.json --policy ours --policy spothedge
  spotinference simulate spot --trace a.json --cold-start 480 --from 0.5 --json | jq .cost
"""


def spot(
    *,
    trace: Annotated[list[Path], typer.Option(help="A zone's trace; once for each zone.")],
    replicas: Annotated[int, typer.Option(help="N: replicas that must be ready.")] = 3,
    cold_start: Annotated[
        float, typer.Option(help="Seconds from a launch until the replica is ready.")
    ] = 120.0,
    on_demand_ratio: Annotated[
        float, typer.Option(help="Price of on-demand, where spot costs 1.")
    ] = 3.0,
    policy: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(POLICIES)}. Several make a table. Default: ours."),
    ] = None,
    windows: Annotated[int, typer.Option(help="Windows, evenly spaced over the share.")] = 10,
    window_hours: Annotated[float, typer.Option(help="Length of each window.")] = 24.0,
    from_: Annotated[float, typer.Option("--from", help="Share of the trace: begin.")] = 0.0,
    to: Annotated[float, typer.Option("--to", help="Share of the trace: end.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Which replicas a zone takes back is random.")] = 0,
    extra: Annotated[int, typer.Option(help="Spare replicas of spothedge.")] = 1,
    history_hours: Annotated[
        float, typer.Option(help="What `ours` may have watched before a window; 0: nothing.")
    ] = 72.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Replay spot traces through a placement policy."""
    names = list(dict.fromkeys(policy or ["ours"]))
    for name in names:
        if name not in POLICIES:
            raise errors.ConfigInvalid(f"--policy {name}: use one of {', '.join(POLICIES)}.")
    if as_json and len(names) > 1:
        raise errors.ConfigInvalid("--json: one --policy at a time, the answer is one object.")
    _at_least("--replicas", replicas, 1, most=1000)
    _at_least("--cold-start", cold_start, 1)
    _at_least("--on-demand-ratio", on_demand_ratio, 0.001)
    _at_least("--windows", windows, 1, most=10_000)
    _at_least("--window-hours", window_hours, 1 / 60)
    _at_least("--extra", extra, 0, most=1000)
    _at_least("--history-hours", history_hours, 0)
    if not 0 <= from_ < to <= 1:
        raise errors.ConfigInvalid(
            f"--from {from_:g} --to {to:g}: shares of the trace with 0 <= from < to <= 1."
        )
    if cold_start >= window_hours * traces.HOUR_S:
        raise errors.ConfigInvalid(
            f"--cold-start {cold_start:g}: nothing would be ready within --window-hours "
            f"{window_hours:g}; use a longer window."
        )
    question = Question(
        policy=names[0],
        zones=traces.load(trace),
        rules=Rules(replicas, cold_start, on_demand_ratio),
        windows=windows,
        window_hours=window_hours,
        share=(from_, to),
        history_hours=history_hours,
        extra=extra,
        seed=seed,
    )
    if as_json:
        typer.echo(json.dumps(placement.answer(question).as_json()))
        return
    began_at = time.monotonic()
    answers = _with_progress(question, names)
    _print(question, answers, time.monotonic() - began_at)


def _at_least(flag: str, value: float, least: float, most: float = math.inf) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        bound = f"at least {least:g}" if most == math.inf else f"{least:g} to {most:g}"
        raise errors.ConfigInvalid(f"{flag} {value:g}: must be {bound}.")


def _with_progress(question: Question, names: list[str]) -> list[Answer]:
    answers = []
    with Progress(
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        for name in names:
            task = bar.add_task(name, total=question.windows)
            tallies = []
            for tally in placement.replayed(replace(question, policy=name)):
                tallies.append(tally)
                bar.advance(task)
            answers.append(Answer(name, question.rules, tuple(tallies)))
    return answers


def _print(question: Question, answers: list[Answer], took_s: float) -> None:
    rules = question.rules
    table = Table(box=None, pad_edge=False)
    table.add_column("POLICY")
    for title in ("AVAILABILITY", "COST", "ON-DEMAND", "RECLAIMS", "LAUNCHES", "REFUSED"):
        table.add_column(title, justify="right")
    for answer in answers:
        row = answer.as_json()
        name = f"spothedge +{question.extra}" if answer.policy == "spothedge" else answer.policy
        table.add_row(
            name,
            f"{answer.availability:.4f}",
            f"{answer.cost:.3f}",
            f"{row['on_demand_share']:.0%}",
            *(str(row[key]) for key in ("preemptions", "launches", "launch_failures")),
        )
    console = Console(highlight=False, width=max(80, Console().width))
    console.print(table)
    console.print(
        f"{rules.replicas} replicas, cold start {rules.cold_start_s:g} s, on-demand "
        f"{rules.on_demand_ratio:g} x spot; {question.windows} windows of "
        f"{question.window_hours:g} h over {question.share[0]:g} to {question.share[1]:g} of "
        f"{len(question.zones)} zones; seed {question.seed}; {took_s:.1f} s. Cost: of "
        f"{rules.replicas} on-demand replicas; the counts are sums.",
        style="dim",
    )
