"""Metrics per market: read from what stands in the store, and gone with their tier."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from spotinference.api.kinds import POOL, TIER, Json
from spotinference.api.tier_status import TierStatus
from spotinference.clients.clock import SystemClock
from spotinference.controller import market_metrics
from spotinference.controller.market_metrics import MarketMetrics
from spotinference.controller.store import Store
from tests.unit.controller.objects import REF, obj, tier

LABELS = {"tier": "default/demo", "market": "spot/zone-a", "capacity_type": "spot"}
CALM = {"calmSince": "2026-01-05T00:00:00Z", "watchedUntil": "2026-01-05T10:00:00Z"}


def status(**market: object) -> Json:
    return {"markets": [{"pool": "spot", "zone": "zone-a", **CALM, **market}]}


def store(**market: object) -> Store:
    it = Store(SystemClock())
    price = {"microUSDPerHour": 350_000}
    spec = {"capacityType": "spot", "zones": ["zone-a"], "nodeSelector": {"a": "b"}, "price": price}
    it.put(POOL, obj(POOL, "spot", namespace=None, spec=spec))
    it.put(TIER, {**tier(), "status": status(**market)})
    return it


def registered(it: Store, leads: bool = True) -> tuple[CollectorRegistry, MarketMetrics]:
    registry = CollectorRegistry()
    found = MarketMetrics("op", it, SystemClock(), lambda: leads)
    registry.register(found)
    return registry, found


def test_price_replicas_and_hazard_of_a_market_are_what_the_tier_and_its_pool_say() -> None:
    registry, _ = registered(store(desired=3, ready=2))
    assert registry.get_sample_value("op_market_price", LABELS) == 0.35
    assert registry.get_sample_value("op_market_ready", LABELS) == 2
    assert registry.get_sample_value("op_market_launching", LABELS) == 1
    assert registry.get_sample_value("op_market_paused", LABELS) == 0
    hazard = registry.get_sample_value("op_market_hazard_per_hour", LABELS)
    assert hazard == pytest.approx(0.6 / 10.7, rel=0.02)  # ten hours calm


def test_a_refusal_is_counted_once_and_forgotten_with_its_tier() -> None:
    it = store()
    registry, markets = registered(it)
    calm = TierStatus.model_validate(status())
    first = TierStatus.model_validate(status(refusedAt="2026-01-05T11:00:00Z"))
    again = TierStatus.model_validate(status(refusedAt="2026-01-05T12:00:00Z"))
    for before, after in ((calm, first), (first, first), (first, None), (first, again)):
        markets.looked(REF, before, after)
    assert registry.get_sample_value("op_market_refusals_total", LABELS) == 2
    it.gone(TIER, it.all(TIER)["default", "demo"])
    assert registry.get_sample_value("op_market_refusals_total", LABELS) is None
    it.put(TIER, {**tier(uid="another", version=9), "status": status()})
    assert registry.get_sample_value("op_market_refusals_total", LABELS) == 0


def test_a_move_is_counted_once_at_the_market_it_goes_to() -> None:
    registry, markets = registered(store())
    quiet = TierStatus.model_validate(status())
    at = {"at": "2026-01-05T11:00:00Z"}
    paying = TierStatus.model_validate({**status(), "move": {**at, "overpaidMicroUSD": 7}})
    ways = {"origin": "other/zone-a", "target": "spot/zone-a"}
    begun = TierStatus.model_validate({**status(), "move": {**at, **ways}})
    for before, after in ((quiet, paying), (paying, begun), (begun, begun), (begun, quiet)):
        markets.looked(REF, before, after)
    assert registry.get_sample_value("op_market_moves_total", LABELS) == 1


def test_a_replica_that_does_not_lead_shows_no_markets() -> None:
    registry, _ = registered(store(), leads=False)
    assert registry.get_sample_value("op_market_ready", LABELS) is None


def test_beyond_the_bound_markets_with_replicas_are_shown_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(market_metrics, "MAX_ROWS", 1)
    it = store(desired=1)
    asleep = {**tier(uid="another"), "status": status()}
    asleep["metadata"]["name"] = "asleep"  # before "demo"
    it.put(TIER, asleep)
    registry, _ = registered(it)
    assert registry.get_sample_value("op_market_launching", LABELS) == 1
    assert (
        registry.get_sample_value("op_market_ready", {**LABELS, "tier": "default/asleep"}) is None
    )


def test_a_pool_that_is_gone_leaves_its_market_without_price_and_hazard() -> None:
    it = store(ready=1)
    it.gone(POOL, it.all(POOL)["", "spot"])
    registry, _ = registered(it)
    unknown = {**LABELS, "capacity_type": "unknown"}
    assert registry.get_sample_value("op_market_ready", unknown) == 1
    assert registry.get_sample_value("op_market_price", unknown) is None
