"""What the operator measures, for Prometheus. One registry per process, made by the root."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PREFIX = "spotinference_operator"
_FAST = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

GAUGES = {
    "queue_depth": "Tiers that wait to be looked at.",
    "queue_active": "Tiers that are being looked at.",
    "leads": "1 while this replica is the leader.",
    "tiers": "Tiers that exist.",
    "nodes_silent": "Nodes with replicas whose kubelet has stopped renewing its Lease.",
    "nodes_held": "Silent nodes not acted upon: many at once, and their engines answer.",
}
"""Values that the composition root reads out of its parts."""


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconcile = Histogram(
            f"{PREFIX}_reconcile_seconds",
            "One look at one tier: observe, decide, act.",
            registry=self.registry,
            buckets=_FAST,
        )
        self.queue_wait = Histogram(
            f"{PREFIX}_queue_wait_seconds",
            "From enqueueing a tier until a worker takes it.",
            registry=self.registry,
            buckets=_FAST,
        )
        self.wake = Histogram(
            f"{PREFIX}_wake_seconds",
            "From seeing demand for a sleeping tier to the scale write that wakes it.",
            registry=self.registry,
            buckets=_FAST,
        )
        self.notice = Histogram(
            f"{PREFIX}_notice_seconds",
            "From seeing a notice or loss of a node to the replacement's scale write.",
            registry=self.registry,
            buckets=_FAST,
        )
        self.writes = Counter(
            f"{PREFIX}_writes_total",
            "Mutating requests that the API server accepted.",
            ["kind", "verb"],
            registry=self.registry,
        )
        self.write_errors = Counter(
            f"{PREFIX}_write_errors_total",
            "Mutating requests that failed, by family of error.",
            ["kind", "verb", "error"],
            registry=self.registry,
        )
        self.refused = Counter(
            f"{PREFIX}_refused_writes_total",
            "Writes not sent because leadership was lost.",
            registry=self.registry,
        )
        self.errors = Counter(
            f"{PREFIX}_reconcile_errors_total",
            "Looks at a tier, or readings of its load, that ended in an error, by family.",
            ["error"],
            registry=self.registry,
        )
        self.repairs = Counter(
            f"{PREFIX}_watch_repairs_total",
            "Objects that the watch had wrong when compared with a full list.",
            ["kind"],
            registry=self.registry,
        )
        self.relists = Counter(
            f"{PREFIX}_relists_total",
            "Lists of a kind that a watch began with: one at the start, and one each time its version was too old.",
            ["kind"],
            registry=self.registry,
        )
        self.suppressed_events = Counter(
            f"{PREFIX}_suppressed_events_total",
            "Kubernetes events not written because they repeat or come too fast.",
            registry=self.registry,
        )
        self.scrapes = Gauge(
            f"{PREFIX}_scrapes",
            "Scrapes of engines since start, by result (ok, or why not).",
            ["result"],
            registry=self.registry,
        )

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        """One of `GAUGES`, read when Prometheus asks."""
        Gauge(f"{PREFIX}_{name}", GAUGES[name], registry=self.registry).set_function(read)
