"""Figures of all rounds, their medians, and the tables made of them (terminal, Markdown, JSON)."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.gateway.install import interpreter
from benchmarks.gateway.peers import DIRECT, OURS, PEERS

Row = dict[str, str]
_OWN_LOADS = (
    ("alone", "as many streams as are admitted"),
    ("overload", "more streams than are admitted"),
    ("beside none", "live streams while nothing waits"),
    ("beside parked", "live streams while requests wait"),
)
_OWN_FIGURES = (
    ("concurrency", "offered", "{:.0f}"),
    ("chunks_per_s", "chunks/s", "{:.0f}"),
    ("chunk_p50", "delay per token p50", "{:.2f} ms"),
    ("chunk_p99", "p99", "{:.2f} ms"),
    ("refused", "refused", "{:.0f}"),
    ("refusal_p50", "time to a refusal p50", "{:.2f} ms"),
    ("refusal_p99", "p99", "{:.2f} ms"),
    ("errors", "errors", "{:.0f}"),
)
"""Of the loads that only ours is measured with: figure, its words, its form."""


@dataclass(slots=True)
class Results:
    conditions: str
    figures: dict[tuple[str, str], list[dict[str, float]]] = field(default_factory=dict)
    """(system, load) → one dictionary per round"""
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """system → why it could not be measured"""

    def add(self, system: str, load: str, figures: dict[str, float]) -> None:
        self.figures.setdefault((system, load), []).append(figures)

    def value(self, system: str, load: str, name: str) -> float | None:
        """The median over the rounds that have it; -1 where none has, None where none was run."""
        rounds = self.figures.get((system, load))
        if not rounds:
            return None
        return median([figures[name] for figures in rounds if figures[name] >= 0] or [-1.0])

    # --- tables ---------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        systems = [DIRECT, *(peer.name for peer in PEERS)]
        streams = sorted({int(load) for _, load in self.figures if load.isdigit()})
        return [self._row(name, streams) for name in systems if self._known(name)]

    def _known(self, system: str) -> bool:
        return system in self.missing or any(name == system for name, _ in self.figures)

    def _row(self, system: str, streams: list[int]) -> Row:
        row = {"system": system, "version": self.versions.get(system, "")}
        if system in self.missing:
            return row | {"requests/s": f"not measured: {self.missing[system]}"}
        row["requests/s"] = _whole(self.value(system, "plain", "requests_per_s"))
        row["CPU µs per request"] = _each(self, system, "plain", "requests_per_s")
        for count in streams:
            load = str(count)
            for name, shown in (("chunk_p50", "p50"), ("chunk_p99", "p99")):
                row[f"{count} streams: added {shown}, ms"] = self._added(system, load, name)
            row[f"{count}: chunks/s"] = _whole(self.value(system, load, "chunks_per_s"))
            row[f"{count}: CPU µs per chunk"] = _each(self, system, load, "chunks_per_s")
        row["errors"] = _whole(
            sum(
                figures.get("errors", 0) + figures.get("refused", 0)
                for (name, load), rounds in self.figures.items()
                if name == system and load != "overload"
                for figures in rounds
            )
        )
        row["RSS, MiB"] = _whole(self.value(system, "rss", "mib"))
        return row

    def _added(self, system: str, load: str, name: str) -> str:
        """Over what the mock and the load generator take without a proxy (shown for `direct`)."""
        here, direct = self.value(system, load, name), self.value(DIRECT, load, name)
        if here is None or direct is None or direct < 0:
            return "-"
        if here < 0:
            return "none came"
        return f"({direct:.2f})" if system == DIRECT else f"{max(0.0, here - direct):.2f}"

    def own_rows(self) -> list[Row]:
        """What is measured of our gateway alone."""
        said: list[tuple[str, str]] = []
        kib = self.value(OURS, "live", "kib")
        if kib is not None:
            said.append(("resident memory per live stream", f"{kib:.1f} KiB"))
        kib = self.value(OURS, "parked", "kib")
        if kib is not None:
            said.append(("resident memory per parked request", f"{kib:.1f} KiB"))
        for load, title in _OWN_LOADS:
            if (OURS, load) in self.figures:
                said.append((title, self._said(load)))
        said += self._beside()
        said += self._scaling()
        return [{"what": what, "figure": figure} for what, figure in said]

    def _said(self, load: str) -> str:
        """The figures of one load in one cell; what does not occur is left out, but for errors."""
        parts = []
        for name, words, form in _OWN_FIGURES:
            value = self.value(OURS, load, name)
            if value is not None and (value > 0 or name == "errors"):
                parts.append(f"{words} {form.format(value)}")
        return "; ".join(parts)

    def _beside(self) -> list[tuple[str, str]]:
        alone, beside = (
            self.value(OURS, load, "chunk_p99") for load in ("beside none", "beside parked")
        )
        if alone is None or beside is None or alone <= 0 or beside < 0:
            return []
        return [
            (
                "their p99 per token while requests wait, over that while nothing waits",
                f"{beside / alone:.2f}",
            )
        ]

    def _scaling(self) -> list[tuple[str, str]]:
        said, rates = [], []
        for name in ("workers 1", "workers 2"):
            rate = self.value(name, "plain", "requests_per_s")
            if rate is None:
                return []
            each = _each(self, name, "plain", "requests_per_s")
            rates.append(rate)
            said.append((f"{name}: requests/s; CPU per request", f"{rate:.0f}; {each} µs"))
        gain = f"{rates[1] / rates[0]:.2f} times"
        said.append(
            ("two workers on two cores, one beside the load, over one alone on a core", gain)
        )
        return said

    # --- output ---------------------------------------------------------------------------------

    def print(self) -> None:
        console = Console(width=max(160, Console().width), highlight=False)
        console.print(f"\n[bold]Gateway benchmark[/bold]: {self.conditions}")
        for rows in (self.rows(), self.own_rows()):
            if rows:
                table = Table()
                columns = list(dict.fromkeys(column for row in rows for column in row))
                for column in columns:
                    table.add_column(column)
                for row in rows:
                    table.add_row(*(row.get(column, "") for column in columns))
                console.print(table)

    def markdown(self) -> str:
        parts = [f"{self.conditions}\n"]
        for rows in (self.rows(), self.own_rows()):
            if not rows:
                continue
            columns = list(dict.fromkeys(column for row in rows for column in row))
            lines = [columns, ["---"] * len(columns)]
            lines += [[row.get(column, "") for column in columns] for row in rows]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
        return "\n".join(parts)

    def as_json(self) -> str:
        figures = {f"{system} / {load}": rounds for (system, load), rounds in self.figures.items()}
        return json.dumps(
            {
                "conditions": self.conditions,
                "versions": self.versions,
                "missing": self.missing,
                "rounds": figures,
            },
            indent=1,
        )


def machine() -> str:
    """What the figures were taken with, in one line."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("aiohttp", "uvloop", "orjson"))
    return (
        f"Python {interpreter()[1]}, {packages}, Linux {platform.release()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start{_scheduling()}"
    )


def _scheduling() -> str:
    if os.sched_getscheduler(0) != os.SCHED_RR:
        return ""
    share = int(Path("/proc/sys/kernel/sched_rt_runtime_us").read_text())
    return ", real-time scheduling" + (
        "" if share < 0 else f" for {share / 10_000:g} % of a second"
    )


def _whole(value: float | None) -> str:
    return "-" if value is None else "none" if value < 0 else f"{value:.0f}"


def _each(results: Results, system: str, load: str, rate: str) -> str:
    """CPU time of the system per request or chunk, in microseconds: median over the rounds."""
    rounds = [f for f in results.figures.get((system, load), []) if f["cpu_s"] and f[rate]]
    if not rounds:
        return "-"
    return f"{median(f['cpu_s'] / f[rate] for f in rounds) * 1e6:.1f}"
