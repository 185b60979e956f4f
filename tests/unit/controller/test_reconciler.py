"""One look at one tier: what somebody waits for is written before the rest is worked out."""

from __future__ import annotations

from spotinference.api.kinds import DEPLOYMENT, TIER
from spotinference.controller.market_metrics import MarketMetrics
from spotinference.controller.metrics import PREFIX
from spotinference.controller.reconciler import Reconciler
from spotinference.core.plan import Plan
from spotinference.core.reconcile import Begun
from tests.support.virtual_time import VirtualClock, virtual_time
from tests.unit.controller.objects import REF, deployment, tier
from tests.unit.controller.test_act import scale
from tests.unit.controller.world import Shell


@virtual_time
async def test_a_replacement_is_asked_for_before_the_rest_of_its_plan_is_worked_out(
    clock: VirtualClock,
) -> None:
    it = Shell(clock)
    it.have(TIER, tier())
    it.have(DEPLOYMENT, deployment(0))
    step = scale(it, 1)
    written_before: list[tuple[str, str]] = []

    def rest() -> Plan:
        written_before.extend(write[:2] for write in it.wrote())
        return Plan(scales=(step,), requeue_after_s=7.0)

    markets = MarketMetrics(PREFIX, it.store, clock, lambda: True)
    begun = Begun(Plan(scales=(step,)), rest)
    looker = Reconciler(it.observer, it.actor, lambda _: begun, it.latencies, it.metrics, markets)
    assert await looker.reconcile(REF) == 7.0
    assert written_before == [("scale", "Deployment")]
    assert [write[:2] for write in it.wrote()] == written_before, "and only once"
