"""What every benchmark prints: versions, a table, and its verdicts; `--json` for machines."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

from spotinference import __version__


@dataclass(slots=True)
class Report:
    title: str
    rows: list[dict[str, str]] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def row(self, **cells: object) -> None:
        self.rows.append({key: _cell(value) for key, value in cells.items()})

    def expect(self, good: bool, claim: str) -> None:
        """A claim that must hold; those that do not make the exit code 1."""
        self.facts[claim] = good
        if not good:
            self.failures.append(claim)

    def print(self, *, as_json: bool) -> int:
        """Prints everything; the exit code."""
        if as_json:
            print(
                json.dumps(
                    {
                        "title": self.title,
                        "versions": versions(),
                        "rows": self.rows,
                        "facts": self.facts,
                        "failures": self.failures,
                    },
                    indent=1,
                    default=str,
                )
            )
            return 1 if self.failures else 0
        console = Console(width=max(100, Console().width), highlight=False)
        console.print(f"\n[bold]{self.title}[/bold]")
        console.print("[dim]" + ", ".join(f"{k} {v}" for k, v in versions().items()) + "[/dim]")
        if self.rows:
            table = Table()
            for column in self.rows[0]:
                table.add_column(column.replace("_", " "))
            for row in self.rows:
                table.add_row(*row.values())
            console.print(table)
        for claim, value in self.facts.items():
            mark = "·"
            if isinstance(value, bool):
                mark = "[green]✓[/green]" if value else "[red]✗[/red]"
            shown = "" if isinstance(value, bool) else f": {value}"
            console.print(f" {mark} {claim}{shown}")
        return 1 if self.failures else 0


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def versions() -> dict[str, str]:
    packages = ("kopf", "kubernetes", "aiohttp", "uvloop")
    return {
        "spotinference": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "kubernetes API": "1.36.3",
        "cores": str(os.cpu_count()),
    }
