"""`spotinference simulate autoscale`: a workload through our autoscaler, or one to compare with."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from spotinference import errors
from spotinference.simulate import autoscale as simulator
from spotinference.simulate import (
    autoscale_operator,
    autoscale_run,
    autoscale_service,
    autoscale_workload,
)

HELP = """Replay a workload through an autoscaling policy: replica-hours against late requests.

The workload is a CSV with the header start_s,requests,prompt_tokens,output_tokens: one row per
bin, requests and tokens summed over the bin. Every replica serves --requests-per-second-per-replica
(or what --service-model measured), is paid from its launch and ready one --cold-start later. A
request that waits longer than --late-after is late.

\b
Policies: ours          what the operator does: the number that is foreseen
          operator      that, with the targets, steps and hysteresis of a tier's defaults
          hpa           Kubernetes' HorizontalPodAutoscaler at 70 % utilisation
          kpa           Knative's autoscaler (60 s stable, panic window)
          keda-waiting  KEDA on num_requests_waiting alone
          static-peak   the most that is ever needed, all the time
          oracle        knows the workload one cold start ahead

\b
  spotinference simulate autoscale --workload load.csv --cold-start 480
  spotinference simulate autoscale --workload load.csv --policy hpa --from 0.5 --json

A policy sees the past only; with --from 0.5 it has lived through the first half, which is not
scored. Every replay begins with the replicas that the first five minutes' mean load needs.
"""


def autoscale(
    workload: Annotated[Path, typer.Option(help="CSV file with the requests.")],
    rate: Annotated[
        float,
        typer.Option(
            "--requests-per-second-per-replica", help="What one replica serves.", metavar="RATE"
        ),
    ] = 2.0,
    service_model: Annotated[
        Path | None,
        typer.Option(help="CSV of measured prompt and token times by batch; replaces the rate."),
    ] = None,
    service_of: Annotated[
        str | None,
        typer.Option(help="MODEL/HARDWARE/TENSOR_PARALLEL in that file; default: its first."),
    ] = None,
    cold_start: Annotated[float, typer.Option(help="Seconds from launch to ready.")] = 480.0,
    least: Annotated[int, typer.Option("--min", help="Fewest replicas; 0 lets it sleep.")] = 1,
    most: Annotated[int, typer.Option("--max", help="Most replicas; 0: no bound.")] = 0,
    policy: Annotated[str, typer.Option(help=" | ".join(autoscale_run.POLICIES))] = "ours",
    late_after: Annotated[float, typer.Option(help="Seconds a request may wait.")] = 10.0,
    first: Annotated[float, typer.Option("--from", help="Score from this share on.")] = 0.0,
    last: Annotated[float, typer.Option("--to", help="Replay and score up to this share.")] = 1.0,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """See HELP."""
    check_policy(policy)
    setup = _setup(
        policy,
        _service(rate, service_model, service_of),
        cold_start,
        least,
        most,
        late_after,
        first,
        last,
    )
    arrivals = autoscale_workload.spread(autoscale_workload.load(workload), simulator.TICK_S)
    _check_share(setup, len(arrivals.requests))
    outcome, _ = autoscale_run.run(policy, arrivals, setup)
    if as_json:
        typer.echo(json.dumps(shown(policy, outcome)))
        return
    _print(policy, workload, outcome, setup)


def shown(policy: str, outcome: simulator.Outcome) -> dict[str, Any]:
    """The object that --json prints."""
    figures = asdict(outcome)
    keys = ("replica_hours", "late_fraction", "wakes", "scale_actions_per_hour", "flaps")
    return {"policy": policy, **{key: figures[key] for key in keys}}


def check_policy(policy: str) -> None:
    """Before a file is read."""
    if policy not in autoscale_run.POLICIES:
        names = ", ".join(autoscale_run.POLICIES)
        raise errors.ConfigInvalid(f"--policy is {policy!r}; it must be one of {names}")


def _service(rate: float, model: Path | None, of: str | None) -> autoscale_service.Service:
    if model is not None:
        return autoscale_service.load(model, of)
    if of is not None:
        raise errors.ConfigInvalid("--service-of without --service-model; name the file too")
    _positive("--requests-per-second-per-replica", rate)
    return autoscale_service.ConstantRate(rate)


def _setup(
    policy: str,
    service: autoscale_service.Service,
    cold_start: float,
    least: int,
    most: int,
    late_after: float,
    first: float,
    last: float,
) -> simulator.Setup:
    _positive("--cold-start", cold_start)
    _positive("--late-after", late_after)
    if least < 0 or most < 0 or (most and most < least):
        raise errors.ConfigInvalid(
            f"--min is {least} and --max is {most}; both at least 0, and --max not below --min "
            "(0: no bound)"
        )
    if policy == "operator" and max(least, most) > autoscale_operator.MOST:
        raise errors.ConfigInvalid(
            f"--min is {least} and --max is {most}; a tier has at most {autoscale_operator.MOST} "
            "replicas, and --policy operator replays one"
        )
    if not 0 <= first < last <= 1:
        raise errors.ConfigInvalid(
            f"--from is {first:g} and --to is {last:g}; shares of the workload, 0 <= from < to <= 1"
        )
    return simulator.Setup(service, cold_start, least, most, late_after, first, last)


def _check_share(setup: simulator.Setup, ticks: int) -> None:
    end = round(setup.last * ticks)
    if round(setup.first / setup.last * end) >= end:
        raise errors.ConfigInvalid(
            f"--from {setup.first:g} --to {setup.last:g}: this share of the workload is shorter "
            f"than a tick of {simulator.TICK_S:g} s; choose a larger one"
        )


def _positive(option: str, value: float) -> None:
    if not 0 < value < 1e9:
        raise errors.ConfigInvalid(f"{option} is {value:g}; it must be above 0")


def _print(policy: str, workload: Path, outcome: simulator.Outcome, setup: simulator.Setup) -> None:
    table = Table(title=f"{policy} on {workload.name}", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("meaning", style="dim")
    rows = (
        ("requests", f"{outcome.requests:,.0f}", "in the scored part"),
        ("late", f"{outcome.late_fraction:.3%}", f"waited longer than {setup.late_after_s:g} s"),
        ("replica-hours", f"{outcome.replica_hours:,.1f}", "paid from launch, ready or not"),
        ("wakes", str(outcome.wakes), "from zero replicas"),
        ("scale actions", f"{outcome.scale_actions_per_hour:.2f}/h", "changes of the number"),
        ("flaps", str(outcome.flaps), f"turned back within {simulator.FLAP_S / 60:g} minutes"),
    )
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
