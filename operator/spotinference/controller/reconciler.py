"""One look at one tier: observe → decide → act. Called by the queue's workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from spotinference import errors
from spotinference.api.conditions import Reason
from spotinference.controller.act import RETRY_BLOCKED_S, Actor, Blocked, NamespaceGoing
from spotinference.controller.latency import Latencies
from spotinference.controller.market_metrics import MarketMetrics
from spotinference.controller.metrics import Metrics
from spotinference.controller.observe import Observer
from spotinference.core.observed import Observed, TierRef
from spotinference.core.reconcile import Begun

log = structlog.get_logger(__name__)

REPORT_AFTER = 3
"""bugs in a row on one tier before its Degraded condition says so"""
EXPIRY_SLACK_S = 0.1
"""look just after a demand ends, not just before"""

Decide = Callable[[Observed], Begun]


@dataclass(slots=True)
class Reconciler:
    observer: Observer
    actor: Actor
    decide: Decide
    latencies: Latencies
    metrics: Metrics
    markets: MarketMetrics
    _bugs: dict[TierRef, int] = field(default_factory=dict)

    async def reconcile(self, ref: TierRef) -> float | None:
        """Answers after how many seconds to look again by time alone."""
        with self.metrics.reconcile.time():
            try:
                again_s = await self._once(ref)
            except NamespaceGoing:
                log.info("namespace.going", tier=str(ref))
                return None
            except errors.SpecInvalid as error:
                await self.actor.report(ref, Blocked(Reason.INVALID_SPEC, str(error)))
                return RETRY_BLOCKED_S
            except errors.Retryable as error:
                self.metrics.errors.labels(type(error).__name__).inc()
                raise
            except Exception as error:
                self.metrics.errors.labels(type(error).__name__).inc()
                await self._count_bug(ref, error)
                raise
        self._bugs.pop(ref, None)
        self.latencies.looked(ref)
        return again_s

    async def _once(self, ref: TierRef) -> float | None:
        found = self.observer.observe(ref)
        if found is None:
            return None
        observed, demand_ends_s = found
        if observed.deleting:
            return None
        begun = self.decide(observed)
        blocked = await self.actor.urgent(observed, begun.urgent)
        plan = begun.whole()
        blocked_s = await self.actor.rest(observed, plan, blocked)
        self.markets.looked(ref, observed.status, plan.status)
        ends_s = demand_ends_s + EXPIRY_SLACK_S if demand_ends_s is not None else None
        return min(
            (s for s in (plan.requeue_after_s, blocked_s, ends_s) if s is not None), default=None
        )

    async def _count_bug(self, ref: TierRef, error: Exception) -> None:
        self._bugs[ref] = self._bugs.get(ref, 0) + 1
        if self._bugs[ref] < REPORT_AFTER:
            return
        message = f"the operator fails on this tier: {type(error).__name__}: {error}"
        try:
            await self.actor.report(ref, Blocked(Reason.INTERNAL_ERROR, message))
        except errors.SpotinferenceError as second:
            log.warning("report.failed", tier=str(ref), error=str(second))
