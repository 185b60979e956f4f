"""`spotinference dev trace play`: a recorded spot market gives and takes the cluster's nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from spotinference import errors
from spotinference.cli.dev_context import Name, cluster_paths, running
from spotinference.core.observed import Market
from spotinference.devcluster import state, supervisor
from spotinference.simulate import traces

CPU_POOL = "cpu"

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Play recorded spot markets in the cluster."
)


@app.callback()
def trace() -> None:
    """Play recorded spot markets in the cluster."""


@dataclass(frozen=True, slots=True)
class Change:
    """From `at_s` of the play on, the market has this many nodes."""

    at_s: float
    market: Market
    capacity: int


@app.command()
def play(
    ctx: typer.Context,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="[POOL/ZONE=]FILE…",
            help="One trace per market. Without POOL/ZONE the file's name must begin with a zone.",
        ),
    ],
    name: Name = None,
    speed: Annotated[
        float, typer.Option(min=0.001, help="So much faster than it was recorded.")
    ] = 60.0,
    begin: Annotated[float, typer.Option(min=0, help="Hour of the trace to begin at.")] = 0.0,
    hours: Annotated[
        float | None, typer.Option(min=0.001, help="Hours of the trace to play; default: all.")
    ] = None,
    notice: Annotated[
        float, typer.Option(min=0, help="Seconds of warning before a node is taken; 0: none.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Chooses which surplus nodes are taken.")] = 0,
) -> None:
    r"""Play spot traces: markets gain and lose capacity, surplus nodes are reclaimed.

    A trace is one zone: {"metadata": {"gap_seconds": 300}, "data": [4, 4, 0, ...]}. Ctrl-C ends it;
    the markets keep the capacity that they have then.

    \b
    spotinference dev trace play spot-l4/zone-a=us-east-1f.json --speed 60 --hours 6
    """
    found = running(cluster_paths(ctx, name))
    player = Player(found, notice, Random(seed))
    asyncio.run(player.run(files, speed, begin, hours))


@dataclass(slots=True)
class Player:
    cluster: state.ClusterState
    notice_s: float
    random: Random
    taken: int = 0

    async def run(
        self, files: Sequence[str], speed: float, begin: float, hours: float | None
    ) -> None:
        """To the end of the traces."""
        status = await self._control("status")
        markets = [Market(m["pool"], m["zone"]) for m in status["markets"] if m["pool"] != CPU_POOL]
        changes, length_s = script(assign(files, markets), speed, begin, hours)
        console = Console(stderr=True, highlight=False)
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console
        )
        started = time.monotonic()
        with bar:
            shown = bar.add_task("playing", total=length_s)
            for change in [*changes, None]:
                until = length_s if change is None else change.at_s
                while (passed := time.monotonic() - started) < until:
                    bar.update(shown, completed=passed)
                    await asyncio.sleep(min(0.5, until - passed))
                if change is not None:
                    await self._change(change, begin + change.at_s * speed / 3600, bar.console)
            bar.update(shown, completed=length_s)
        console.print(f"{len(changes)} changes of capacity, {self.taken} nodes taken")

    async def _change(self, change: Change, hour: float, console: Console) -> None:
        market = change.market
        await self._control("market", pool=market.pool, zone=market.zone, capacity=change.capacity)
        status = await self._control("status")
        there = [
            node["name"]
            for node in status["nodes"]
            if (node["pool"], node["zone"]) == (market.pool, market.zone)
            and node["state"] in {"ready", "silent"}
        ]
        surplus = len(there) - change.capacity
        gone = self.random.sample(sorted(there), surplus) if surplus > 0 else []
        for node in gone:
            try:
                await self._control("reclaim", node=node, notice=self.notice_s or None)
            except errors.ConfigInvalid:
                continue  # it went by itself in between
            self.taken += 1
        words = f", takes {', '.join(gone)}" if gone else ""
        console.print(f"hour {hour:7.2f}  {market}: {change.capacity} nodes{words}")

    async def _control(self, action: str, **body: object) -> dict[str, Any]:
        return await supervisor.control(
            self.cluster.control_url, self.cluster.control_token, action, **body
        )


def assign(files: Sequence[str], markets: Sequence[Market]) -> dict[Market, traces.Zone]:
    """The trace of each market. `ConfigInvalid` says which markets there are."""
    known = ", ".join(str(m) for m in markets) or "none"
    found: dict[Market, traces.Zone] = {}
    for text in files:
        place, equals, file = text.rpartition("=")
        path = Path(file)
        if equals:
            pool, _, zone = place.partition("/")
            fitting = [m for m in markets if m == Market(pool, zone)]
        else:
            fitting = [m for m in markets if path.stem.startswith(m.zone)]
        if len(fitting) != 1:
            what = f"no market {place}" if equals else "not clear for which market it is"
            raise errors.ConfigInvalid(f"{text}: {what}; write POOL/ZONE=FILE with one of {known}.")
        if fitting[0] in found:
            raise errors.ConfigInvalid(f"{text}: {fitting[0]} has a trace already.")
        found[fitting[0]] = traces.load([path])[0]
    return found


def script(
    zones: Mapping[Market, traces.Zone], speed: float, begin: float, hours: float | None
) -> tuple[list[Change], float]:
    """All changes of capacity in order, and how many seconds the play lasts."""
    common_s = min(zone.span_s for zone in zones.values())
    first_s = begin * 3600
    last_s = common_s if hours is None else first_s + hours * 3600
    if first_s >= common_s or last_s > common_s:
        raise errors.ConfigInvalid(
            f"--begin, --hours: the traces have {common_s / 3600:.2f} hours in common."
        )
    changes: list[Change] = []
    for market, zone in zones.items():
        before = None
        at_s = first_s
        while at_s < last_s:
            capacity = zone.at(at_s)
            if capacity != before:
                changes.append(Change((at_s - first_s) / speed, market, capacity))
                before = capacity
            at_s = (int(at_s / zone.gap_s) + 1) * zone.gap_s
    changes.sort(key=lambda c: c.at_s)
    return changes, (last_s - first_s) / speed
