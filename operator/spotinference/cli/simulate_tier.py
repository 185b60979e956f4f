"""`spotinference simulate tier`: the whole product replayed, with its bill, beside what others do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
import yaml
from rich.console import Console
from rich.table import Table

from spotinference import errors
from spotinference.api import parse
from spotinference.api.kinds import POOL, TIER, Json
from spotinference.api.pool import PoolSpec
from spotinference.api.tier import TierSpec
from spotinference.core.observed import Market
from spotinference.simulate import autoscale_service, autoscale_workload, rivals, tier, traces
from spotinference.simulate.operated import Operated
from spotinference.simulate.tier import Outcome, Setup

LONG_S = 7 * 86_400.0
SHORT_TICK_S, LONG_TICK_S = 10.0, 20.0


def command(
    tier_file: Annotated[
        Path, typer.Option("--tier", help="An InferenceTier (YAML), as for kubectl apply.")
    ],
    pools_file: Annotated[
        Path,
        typer.Option("--pools", help="Its GPUPools (YAML documents), each with spec.price."),
    ],
    workload: Annotated[
        Path, typer.Option(help="CSV in bins: start_s,requests,prompt_tokens,output_tokens.")
    ],
    trace: Annotated[
        list[str] | None,
        typer.Option(
            help="POOL/ZONE=FILE: capacity of a market over time; one option per market. "
            "Markets without one always have capacity."
        ),
    ] = None,
    boot: Annotated[float, typer.Option(min=0, help="Seconds from a launch to a node.")] = 90.0,
    load: Annotated[
        float, typer.Option(min=0, help="Seconds from a pod on its node to a ready engine.")
    ] = 90.0,
    requests_per_second_per_replica: Annotated[
        float, typer.Option(min=0.001, help="What one replica serves.")
    ] = 2.0,
    answer_seconds: Annotated[
        float, typer.Option(min=0.1, help="How long one answer lasts on a busy replica.")
    ] = 10.0,
    service_model: Annotated[
        Path | None,
        typer.Option(help="Measured prompt and token times by batch size instead of a rate (CSV)."),
    ] = None,
    late_after: Annotated[
        float, typer.Option(min=0, help="A request that waits longer than this is late (s).")
    ] = 10.0,
    speed: Annotated[
        float, typer.Option(min=0.001, help="Play the traces this much faster than the rest.")
    ] = 1.0,
    from_: Annotated[
        float, typer.Option("--from", min=0, max=1, help="Share of the workload to begin at.")
    ] = 0.0,
    to: Annotated[float, typer.Option(min=0, max=1, help="Share of the workload to end at.")] = 1.0,
    tick: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Seconds between two looks.", show_default="10; 20 above a week"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses which surplus nodes are reclaimed.")] = 0,
    alone: Annotated[
        bool, typer.Option("--alone", help="Without the policies to compare.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a picture (PNG) of our run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for scripts.")] = False,
) -> None:
    r"""Replay one tier whole: waking, scaling, placement, reclaims, parking, and its bill.

    The operator's own decisions run on a virtual clock against markets that give and take nodes as
    the traces say. Printed: requests that were late, parked, continued, refused; dollars by what
    they paid for; and the same for on-demand-static and SpotHedge + HPA.

    \b
    spotinference simulate tier --tier tier.yaml --pools pools.yaml --workload day.csv \
      --trace spot/us-east-2a=us-east-2a.json --plot day.png
    """
    spec, pools = read(tier_file, pools_file)
    capacity = _traces(trace or [], spec, pools)
    bins = autoscale_workload.load(workload)
    span_s = bins[-1].end_s - bins[0].start_s
    tick_s = tick or (SHORT_TICK_S if span_s <= LONG_S else LONG_TICK_S)
    if from_ >= to:
        raise errors.ConfigInvalid(f"--from {from_:g} is not below --to {to:g}; choose a share.")
    whole = autoscale_workload.spread(bins, tick_s)
    first, last = (round(share * len(whole.requests)) for share in (from_, to))
    service: autoscale_service.Service = autoscale_service.ConstantRate(
        requests_per_second_per_replica, requests_per_second_per_replica * answer_seconds
    )
    if service_model is not None:
        service = autoscale_service.load(service_model)
    setup = Setup(
        spec=spec,
        pools=pools,
        capacity=capacity,
        arrivals=autoscale_workload.Arrivals(
            tick_s,
            whole.requests[first:last],
            whole.prompt_tokens[first:last],
            whole.output_tokens[first:last],
        ),
        service=service,
        boot_s=boot,
        load_s=load,
        late_after_s=late_after,
        seed=seed,
        begin_s=first * tick_s * speed,
        speed=speed,
    )
    _check_span(setup)
    outcomes = _run(setup, alone=alone, quiet=as_json)
    if plot is not None:
        # Only who wants a picture needs the library for it.
        from spotinference.simulate import tier_plot

        tier_plot.write(plot, setup, outcomes)
    if as_json:
        typer.echo(orjson.dumps(report(setup, outcomes), option=orjson.OPT_INDENT_2))
        return
    _print(setup, outcomes)
    if plot is not None:
        typer.echo(f"\nplot: {plot}")


def read(tier_file: Path, pools_file: Path) -> tuple[TierSpec, dict[str, PoolSpec]]:
    """The tier, the pools it names, and reserved ones beside them to compare with. `ConfigInvalid` or `SpecInvalid` says file and field."""
    tiers = [d for d in _documents("--tier", tier_file) if d.get("kind") == TIER.kind]
    if len(tiers) != 1:
        raise errors.ConfigInvalid(
            f"--tier {tier_file}: {len(tiers)} documents of kind {TIER.kind}; it must be one."
        )
    spec = parse.parse_tier(tiers[0])
    found = {
        str(d.get("metadata", {}).get("name")): parse.parse_pool(d)
        for d in _documents("--pools", pools_file)
        if d.get("kind") == POOL.kind
    }
    missing = [name for name in spec.placement.pools if name not in found]
    if missing:
        raise errors.ConfigInvalid(
            f"--pools {pools_file}: no {POOL.kind} named {missing[0]}, which spec.placement.pools "
            f"of the tier names; it has {', '.join(sorted(found)) or 'none'}."
        )
    reserved = [name for name, pool in found.items() if pool.capacity_type == "reserved"]
    pools = {name: found[name] for name in (*spec.placement.pools, *reserved)}
    unpriced = [name for name, pool in pools.items() if pool.price is None]
    if unpriced:
        raise errors.ConfigInvalid(
            f"--pools {pools_file}: {unpriced[0]} has no price; set spec.price.microUSDPerHour "
            "(350000 is $0.35 per node and hour)."
        )
    return spec, pools


def report(setup: Setup, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The JSON of a replay: our run, with the others under `compared`."""
    ours, *others = [_row(outcome) for outcome in outcomes]
    first = outcomes[0]
    step = max(1, len(first.timeline) // 500)
    return {
        **ours,
        "seed": setup.seed,
        "tick_seconds": setup.tick_s,
        "compared": others,
        "timeline": [
            {
                "at_s": p.at_s,
                "requests_per_s": round(p.requests, 4),
                "queued": round(p.queued, 1),
                "ready": {str(m): n for m, n in sorted(p.ready.items())},
                "starting": p.starting,
                "usd_per_hour": round(p.usd_per_h, 4),
            }
            for p in first.timeline[::step]
        ],
    }


def _row(o: Outcome) -> dict[str, Any]:
    t = o.tally
    per_million = o.usd_per_million_output_tokens
    return {
        "policy": o.policy,
        "hours": round(o.hours, 3),
        "requests": round(t.requests),
        "late": round(t.late),
        "late_fraction": t.late / t.requests if t.requests else 0.0,
        "parked": round(t.parked),
        "continued": round(t.continued),
        "refused": round(t.refused),
        "cut": round(t.cut),
        "output_tokens": round(t.output_tokens),
        "availability": o.availability,
        "wakes": o.wakes,
        "reclaims": o.reclaims,
        "launches": o.launches,
        "launch_failures": o.launch_failures,
        "replica_hours": round(o.ready_s / 3600, 3),
        "node_hours": round(o.paid_s / 3600, 3),
        "usd": round(o.usd, 4),
        "usd_by_line": {line: round(usd, 4) for line, usd in o.bill.items()},
        "usd_by_capacity_type": {k: round(v, 4) for k, v in sorted(o.by_capacity_type.items())},
        "usd_per_million_output_tokens": None if per_million is None else round(per_million, 4),
    }


def _documents(option: str, path: Path) -> list[Json]:
    try:
        found = list(yaml.safe_load_all(path.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise errors.ConfigInvalid(f"{option} {path}: {error}") from None
    return [body for body in found if isinstance(body, dict)]


def _traces(
    options: Sequence[str], spec: TierSpec, pools: dict[str, PoolSpec]
) -> dict[Market, traces.Zone]:
    known = [Market(n, z) for n in spec.placement.pools for z in pools[n].zones]
    found: dict[Market, traces.Zone] = {}
    for text in options:
        place, equals, file = text.partition("=")
        pool, slash, zone = place.partition("/")
        if not (equals and slash and file):
            raise errors.ConfigInvalid(
                f"--trace {text}: write POOL/ZONE=FILE, for example {known[0]}=zone.json."
            )
        market = Market(pool, zone)
        if market not in known:
            raise errors.ConfigInvalid(
                f"--trace {text}: no market {market}; the tier has "
                f"{', '.join(str(m) for m in known)}."
            )
        found[market] = traces.load([Path(file)])[0]
    return found


def _check_span(setup: Setup) -> None:
    if not setup.arrivals.requests:
        raise errors.ConfigInvalid(
            "--from, --to: this share of the workload is shorter than a tick."
        )
    end_s = setup.begin_s + len(setup.arrivals.requests) * setup.tick_s * setup.speed
    for market, zone in setup.capacity.items():
        if end_s > zone.span_s + setup.tick_s:
            raise errors.ConfigInvalid(
                f"--trace {market}: {zone.span_s / 3600:.1f} h are less than the workload's "
                f"{end_s / 3600:.1f} h; use a longer trace, or --to {zone.span_s / end_s:.2f}."
            )


def _run(setup: Setup, *, alone: bool, quiet: bool) -> list[Outcome]:
    controllers: list[tier.Controller] = [Operated(setup.spec, setup.pools)]
    if not alone:
        controllers += rivals.of(setup)
    console = Console(stderr=True, quiet=quiet)
    outcomes = []
    for controller in controllers:
        with console.status(f"replaying {controller.name} …"):
            outcomes.append(tier.replay(setup, controller))
    return outcomes


def _print(setup: Setup, outcomes: Sequence[Outcome]) -> None:
    console = Console(highlight=False)
    first = outcomes[0]
    console.print(
        f"{first.hours:.1f} h, {first.tally.requests:,.0f} requests, "
        f"{len(setup.capacity)} traced markets, seed {setup.seed}\n"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for o in outcomes:
        table.add_column(o.policy, justify="right")
    rows = [_row(o) for o in outcomes]
    for name, show in _SHOWN:
        table.add_row(name, *(show(row) for row in rows))
    console.print(table)


def _share(key: str, of: str) -> Any:
    return lambda row: f"{row[key]:,} ({row[key] / row[of]:.2%})" if row[of] else "0"


def _money(row: dict[str, Any], usd: float) -> str:
    return f"${usd:,.2f} ({usd / row['usd']:.0%})" if row["usd"] else "$0"


_SHOWN: tuple[tuple[str, Any], ...] = (
    ("$ per million output tokens", lambda r: f"${r['usd_per_million_output_tokens'] or 0:,.2f}"),
    ("cost", lambda r: f"${r['usd']:,.2f}"),
    ("  serving", lambda r: _money(r, r["usd_by_line"]["serving"])),
    ("  idle", lambda r: _money(r, r["usd_by_line"]["idle"])),
    ("  starting", lambda r: _money(r, r["usd_by_line"]["starting"])),
    ("  interruption", lambda r: _money(r, r["usd_by_line"]["interruption"])),
    ("on-demand part", lambda r: _money(r, r["usd_by_capacity_type"].get("on-demand", 0.0))),
    ("late", _share("late", "requests")),
    ("parked", _share("parked", "requests")),
    ("continued", lambda r: f"{r['continued']:,}"),
    ("refused", lambda r: f"{r['refused'] + r['cut']:,}"),
    (
        "minReplicas ready",
        lambda r: "-" if r["availability"] is None else f"{r['availability']:.2%}",
    ),
    ("wakes", lambda r: str(r["wakes"])),
    ("reclaims", lambda r: str(r["reclaims"])),
    ("launches", lambda r: str(r["launches"])),
    ("launches refused", lambda r: str(r["launch_failures"])),
    ("replica hours", lambda r: f"{r['replica_hours']:,.1f}"),
)
