"""The embedded cluster's bill: when each node was ours, and for what price.

`nodes.jsonl`, one line per event (launch, ready, end); whoever wants to show that nothing is
billed reads it back with `read`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from spotinference.api import times
from spotinference.clients.clock import Clock
from spotinference.core.observed import Market


@dataclass(slots=True)
class Bill:
    path: Path
    clock: Clock

    def launched(self, node: str, market: Market, micro_usd_per_h: int) -> None:
        """The node is billed from here on."""
        self._write(
            "launch",
            node,
            {"pool": market.pool, "zone": market.zone, "microUsdPerHour": micro_usd_per_h},
        )

    def ready(self, node: str) -> None:
        self._write("ready", node, {})

    def ended(self, node: str, reason: str) -> None:
        """`reason`: idle, cancelled, no-capacity, reclaimed, lost, deleted."""
        self._write("end", node, {"reason": reason})

    def _write(self, event: str, node: str, more: dict[str, object]) -> None:
        at = times.to_micro_text(self.clock.now())
        with self.path.open("a") as file:
            file.write(json.dumps({"at": at, "event": event, "node": node, **more}) + "\n")


def read(path: Path) -> list[dict[str, object]]:
    """All events in order; none when nothing was ever launched."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]
