"""What the gateway measures. Labels are bounded: unknown tiers and models are `other`."""

from __future__ import annotations

from bisect import bisect_left
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

_ERROR_SECONDS = (-300, -120, -60, -30, -10, -5, -2, 0, 2, 5, 10, 30, 60, 120, 300)
"""Below zero: it took longer than was said."""

CONTENT_TYPE = CONTENT_TYPE_LATEST
OTHER = "other"


_Metric = TypeVar("_Metric", Counter, Histogram)


class Metrics:
    """One registry per process; made in the composition root."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._of_requests()
        self._of_waits()
        self._of_continuations()
        self._of_engines_and_workers()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return _quick(
            Counter(f"spotinference_gateway_{name}", text, labels, registry=self.registry)
        )

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"spotinference_gateway_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return _quick(
            Histogram(
                f"spotinference_gateway_{name}", text, labels, registry=self.registry,
                buckets=_SECONDS,
            )
        )  # fmt: skip

    def _of_requests(self) -> None:
        self.requests = self._counter("requests", "Requests by tier and outcome.", "tier", "code")
        self.in_flight = self._gauge("requests_in_flight", "Requests being answered or parked.")
        self.first_byte_seconds = self._histogram(
            "first_byte_seconds", "Arrival to the first byte of the answer.", "tier"
        )
        self.limited = self._counter(
            "limited_requests", "Requests above a limit of their key.", "limit"
        )
        self.bugs = self._counter("bugs", "Requests that failed by a mistake of the gateway.")

    def _of_waits(self) -> None:
        self.parked = self._gauge("parked_requests", "Requests that wait for a replica.", "tier")
        self.parked_bytes = self._gauge("parked_bytes", "Bodies of the requests that wait.")
        self.parked_refused = self._counter(
            "parked_refused", "Requests that found no place to wait, by the bound.", "bound"
        )
        self.rejected_warming = self._counter(
            "rejected_warming", "Requests of keys that do not wait, to a tier that wakes.", "tier"
        )
        self.parked_seconds = self._histogram(
            "parked_seconds", "Time a request was parked.", "tier"
        )
        self.eta_error_seconds = Histogram(
            "spotinference_gateway_eta_error_seconds",
            "Estimated wait for a replica, as told on arrival, minus the true one.",
            ("tier",),
            registry=self.registry,
            buckets=_ERROR_SECONDS,
        )
        self.demand_writes = self._counter(
            "demand_writes", "Writes of demand Leases.", "verb", "result"
        )

    def _of_continuations(self) -> None:
        self.classes = self._counter(
            "continuation_classes",
            "Requests by how their answer would be continued, chosen when they arrive.",
            "kind",
        )
        self.continuations = self._counter(
            "continuations", "Continuations by class and outcome.", "kind", "outcome"
        )
        self.evacuated = self._counter(
            "evacuated", "Answers that left a replica before its notice expired.", "tier"
        )
        self.interruptions = self._counter(
            "interruptions", "Answers whose replica was lost after the first byte.", "tier"
        )
        self.stall_seconds = self._histogram(
            "stall_seconds", "Loss of a replica to the next byte of the answer.", "tier"
        )
        self.replayed_tokens = self._counter(
            "replayed_tokens", "Tokens generated again to verify a continuation.", "tier"
        )
        self.replayed_prompt_tokens = self._counter(
            "replayed_prompt_tokens", "Prompt tokens processed again after a loss.", "tier"
        )

    def _of_engines_and_workers(self) -> None:
        self.ejections = self._counter(
            "ejections", "Replicas taken out of routing, by what they failed at.", "reason"
        )
        self.deadlines = self._counter(
            "deadlines", "Attempts that ran into a deadline: first, next or total.", "tier", "which"
        )
        self.retries = self._counter(
            "retries", "Second tries after a sick answer: sent, or refused by the budget.",
            "tier", "outcome",
        )  # fmt: skip
        self.usage_records = self._counter(
            "usage_records", "Usage records: written, shipped, or dropped at a bound.", "outcome"
        )
        self.usage_shipments_failed = self._counter(
            "usage_shipments_failed",
            "Batches of usage records that were not taken, or not read or deleted on the disk.",
        )
        self.worker_restarts = self._counter(
            "worker_restarts", "Workers that ended by themselves and were started again."
        )

    def render(self) -> bytes:
        return generate_latest(self.registry)


def _quick(metric: _Metric) -> _Metric:
    """The same metric, its children remembered by their labels.

    The library's own `labels` takes longer than the increment after it, and what it checks at each
    increment and observation (labels, signs, exemplars) longer than that. Not for gauges: one whose
    tier is gone may be removed, and would be remembered.
    """
    children: dict[tuple[str, ...], _Metric] = {}
    make = metric.labels

    def labels(*values: str) -> _Metric:
        child = children.get(values)
        if child is None:
            child = children[values] = make(*values)
            if isinstance(child, Histogram):
                _observe_quickly(child)
            else:
                _count_quickly(child)
        return child

    vars(metric)["labels"] = labels
    return metric


def _count_quickly(child: Counter) -> None:
    """The same count, without the library's look for exemplars."""
    count = child._value.inc  # noqa: SLF001 - as `inc` does

    def inc(amount: float = 1, exemplar: object = None) -> None:
        del exemplar
        if amount < 0:
            raise ValueError("a counter never falls")
        count(amount)

    vars(child)["inc"] = inc


def _observe_quickly(child: Histogram) -> None:
    """The same observations, their bucket found by bisection."""
    bounds, buckets, total = child._upper_bounds, child._buckets, child._sum  # noqa: SLF001 - as `observe` does

    def observe(amount: float, exemplar: object = None) -> None:
        del exemplar
        total.inc(amount)
        buckets[bisect_left(bounds, amount)].inc(1)

    vars(child)["observe"] = observe
