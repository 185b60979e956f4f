"""What a person sees of a running cluster: markets, nodes and processes as a small table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from spotinference import errors
from spotinference.devcluster.state import ClusterState
from spotinference.devcluster.supervisor import control

REFRESH_S = 1.0
MICRO = 1_000_000
_STYLES = {"ready": "green", "booting": "yellow", "doomed": "red", "silent": "red"}

Status = dict[str, Any]
"""The answer of the control API's `status`."""


def table(status: Status) -> RenderableType:
    """Markets with their nodes and pods, then the processes."""
    return Group(_markets(status), _processes(status))


def follow(found: ClusterState, ended: Callable[[], bool], console: Console | None = None) -> None:
    """Shows the table live on a terminal until the cluster ended; elsewhere only waits."""
    console = console or Console()
    if not console.is_terminal:
        while not ended():
            time.sleep(REFRESH_S)
        return
    with Live(console=console, auto_refresh=False) as live:
        while not ended():
            try:
                status = asyncio.run(control(found.control_url, found.control_token, "status"))
                live.update(table(status), refresh=True)
            except errors.SpotinferenceError as error:
                live.update(Text(str(error), style="red"), refresh=True)
            time.sleep(REFRESH_S)


def _markets(status: Status) -> Table:
    shown = Table("market", "$/h", "nodes", "node", "state", "pods", box=None, pad_edge=False)
    for market in status.get("markets", []):
        nodes = [
            node
            for node in status.get("nodes", [])
            if (node["pool"], node["zone"]) == (market["pool"], market["zone"])
        ]
        price = f"{market['microUsdPerHour'] / MICRO:.2f}"
        head = (f"{market['pool']}/{market['zone']}", price, f"{len(nodes)}/{market['capacity']}")
        for row in nodes or [{"name": "", "state": ""}]:
            style = _STYLES.get(row["state"], "")
            pods = ", ".join(row.get("pods", []))
            shown.add_row(*head, row["name"], Text(row["state"], style=style), pods)
            head = ("", "", "")
    return shown


def _processes(status: Status) -> Text:
    text = Text("\n")
    for name, row in status["processes"].items():
        health, style = _health(row)
        restarts = f", {row['restarts']} restarts" if row["restarts"] else ""
        text.append(f"{name} ")
        text.append(f"{health}{restarts}   ", style=style)
    return text


def _health(row: dict[str, Any]) -> tuple[str, str]:
    if row["healthy"]:
        return "ok", "green"
    return ("not ready", "yellow") if row["alive"] else ("down", "red")
