"""docs/reference/metrics.md names every metric of operator and gateway, and no other."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry

from spotinference.clients.clock import SystemClock
from spotinference.controller import metrics as operator_metrics
from spotinference.controller.market_metrics import MarketMetrics
from spotinference.controller.store import Store
from spotinference.gateway import metrics as gateway_metrics

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
HEAD = """# Metrics

Prometheus metrics of the operator and the gateway, on their metrics ports. Labels are bounded:
tiers that do not exist are counted as `other`. Held to the code by a test; `UPDATE_GOLDEN=1 make
unit` writes it anew.
"""


def _table(registry: CollectorRegistry) -> str:
    rows = []
    for metric in sorted(registry.collect(), key=lambda m: m.name):
        name = metric.name + ("_total" if metric.type == "counter" else "")
        rows.append(f"| `{name}` | {metric.type} | {metric.documentation} |")
    return "| metric | type | what it counts |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def rendered() -> str:
    operator = operator_metrics.Metrics()
    for name in operator_metrics.GAUGES:
        operator.gauge(name, lambda: 0.0)
    clock = SystemClock()
    operator.registry.register(
        MarketMetrics(operator_metrics.PREFIX, Store(clock), clock, lambda: False)
    )
    gateway = gateway_metrics.Metrics()
    return (
        f"{HEAD}\n## Operator\n\n{_table(operator.registry)}"
        f"\n## Gateway\n\n{_table(gateway.registry)}"
    )


def test_the_reference_names_every_metric() -> None:
    if os.environ.get("UPDATE_GOLDEN") == "1":
        PAGE.write_text(rendered())
    assert PAGE.read_text() == rendered()
