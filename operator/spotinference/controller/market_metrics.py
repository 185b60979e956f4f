"""Metrics per market of each tier, read from what the operator knows when Prometheus asks.

Nothing is kept but the counts of refusals and moves: price, replicas and hazard are worked out of the stored
tiers and pools, so a tier that is deleted takes its series along. Empty where another replica leads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from operator import itemgetter

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from spotinference import errors
from spotinference.api import parse
from spotinference.api.kinds import POOL, TIER
from spotinference.api.pool import PoolSpec
from spotinference.api.tier_status import MarketStatus, TierStatus
from spotinference.clients.clock import Clock
from spotinference.controller.store import Store
from spotinference.core import outlook, regret
from spotinference.core.markets import HOUR_S, NOTHING_KNOWN
from spotinference.core.observed import Market, TierRef

MAX_ROWS = 1000
"""Markets shown, over all tiers: seven series each, written by the loop that also decides (4,000 took it
0.2 s). A cluster that has more shows those with replicas first."""
LABELS = ("tier", "market", "capacity_type")
GAUGES = {
    "price": "Dollars per replica and hour there, where the pool has a price.",
    "ready": "Replicas of the tier that serve there.",
    "launching": "Replicas asked for there that do not serve yet.",
    "paused": "1 while the tier launches nothing there because it refused, took a node back, or its launch was never ready.",
    "hazard_per_hour": "Reclaims to expect there in the next hour; spot only.",
}
REFUSALS = (
    "Launches that stayed pending there or were never ready, or nodes that it took back, since this "
    "process leads."
)
MOVES = "Moves of a replica begun to there, because it costs less, since this process leads."


Families = dict[str, GaugeMetricFamily | CounterMetricFamily]


class MarketMetrics(Collector):
    """Registered once per process. `looked` is told of each status that changes."""

    def __init__(self, prefix: str, store: Store, clock: Clock, leads: Callable[[], bool]) -> None:
        self._prefix = prefix
        self._store = store
        self._clock = clock
        self._leads = leads
        self._refusals: Counter[tuple[TierRef, Market]] = Counter()
        self._moves: Counter[tuple[TierRef, Market]] = Counter()

    def looked(self, ref: TierRef, before: TierStatus, after: TierStatus | None) -> None:
        """Counts the markets whose `refusedAt` has moved on, and moves that have begun."""
        if after is None:
            return
        known = {(m.pool, m.zone): m.refused_at for m in before.markets}
        for m in after.markets:
            if m.refused_at is not None and m.refused_at != known.get((m.pool, m.zone)):
                self._refusals[ref, Market(m.pool, m.zone)] += 1
        move, old = regret.of(after.move), regret.of(before.move)
        begun = move is not None and (old is None or old.target is None)
        if move is not None and move.target is not None and begun:
            self._moves[ref, move.target] += 1

    def describe(self) -> Iterable[Metric]:
        """The families without series, so that registering reads nothing."""
        return self._families().values()

    def collect(self) -> Iterable[Metric]:
        families = self._families()
        if self._leads():
            self._forget()
            pools = self._pools()
            for ref, market in self._rows()[:MAX_ROWS]:
                self._add(families, ref, market, pools.get(market.pool))
        return families.values()

    def _families(self) -> Families:
        name = f"{self._prefix}_market"
        return {
            **{
                k: GaugeMetricFamily(f"{name}_{k}", text, labels=LABELS)
                for k, text in GAUGES.items()
            },
            "refusals": CounterMetricFamily(f"{name}_refusals", REFUSALS, labels=LABELS),
            "moves": CounterMetricFamily(f"{name}_moves", MOVES, labels=LABELS),
        }

    def _add(
        self, families: Families, ref: TierRef, status: MarketStatus, pool: PoolSpec | None
    ) -> None:
        market = Market(status.pool, status.zone)
        kind = "unknown" if pool is None else pool.capacity_type
        labels = [str(ref), str(market), kind]
        now = self._clock.now()
        now_s = now.timestamp()
        belief = outlook.belief_of(status, now)
        values: dict[str, float] = {
            "ready": status.ready,
            "launching": max(0, status.desired - status.ready),
            "paused": float(belief is not None and belief.closed_until_s > now_s),
            "refusals": self._refusals[ref, market],
            "moves": self._moves[ref, market],
        }
        if pool is not None and pool.price is not None:
            values["price"] = pool.price.micro_usd_per_hour / 1e6
        if kind == "spot":
            believed = belief or NOTHING_KNOWN.of(market, now_s)
            values["hazard_per_hour"] = believed.reclaims_per_h(now_s, HOUR_S)
        for name, value in values.items():
            families[name].add_metric(labels, value)

    def _rows(self) -> list[tuple[TierRef, MarketStatus]]:
        """Those with replicas first, then by name."""
        rows = [
            (TierRef(*key), m)
            for key, body in sorted(self._store.all(TIER).items(), key=itemgetter(0))
            for m in parse.parse_status(body).markets
        ]
        return sorted(rows, key=lambda row: row[1].desired == row[1].ready == 0)

    def _pools(self) -> dict[str, PoolSpec]:
        found = {}
        for body in self._store.all(POOL).values():
            try:
                found[body["metadata"]["name"]] = parse.stored_pool(body)
            except errors.SpecInvalid:
                continue  # the pool's own status says so; its markets show no price
        return found

    def _forget(self) -> None:
        living = set(self._store.tiers())
        for counts in (self._refusals, self._moves):
            for key in [k for k in counts if k[0] not in living]:
                del counts[key]
