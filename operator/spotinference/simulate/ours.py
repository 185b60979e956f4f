"""The operator's own policy (`core.markets`, `core.buying`) at the simulator's markets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from spotinference.core import buying, markets
from spotinference.core.observed import Market
from spotinference.simulate.spot import ON_DEMAND, Held, Orders, Rules, View
from spotinference.simulate.traces import Zone

BRIDGE = Market("on-demand", "any")
LOOK_EVERY_S = 120.0
"""While nothing happens it decides only so often; whatever happens makes it decide at once."""


@dataclass(slots=True)
class Ours:
    remembers: ClassVar[bool] = True

    rules: Rules
    zones: Sequence[Zone]
    beliefs: markets.Beliefs = markets.NOTHING_KNOWN
    _offers: tuple[buying.Offer, ...] = ()
    _index: dict[Market, int] = field(default_factory=dict)
    _seen: tuple[tuple[int, bool], ...] = ()
    _looked_s: float = float("-inf")

    def __post_init__(self) -> None:
        self._index = {Market(z.name, z.place): i for i, z in enumerate(self.zones)}
        bridge = buying.Offer(BRIDGE, self.rules.on_demand_ratio, spot=False)
        self._offers = (*(buying.Offer(market, 1.0) for market in self._index), bridge)

    def decide(self, view: View) -> Orders:
        names = tuple(self._index)
        standing = Counter(names[h.zone] for h in view.held if h.zone != ON_DEMAND)
        self._learn(view, names, standing)
        seen = tuple((h.id, h.ready) for h in view.held)
        calm = seen == self._seen and not view.failed and len(seen) >= self.rules.replicas
        if calm and view.now_s - self._looked_s < LOOK_EVERY_S:
            return Orders()
        self._seen, self._looked_s = seen, view.now_s
        orders = buying.decide(
            [self._stand(h, names, view.now_s) for h in view.held],
            self._offers,
            self.beliefs,
            buying.Terms(self.rules.replicas, self.rules.cold_start_s, self.rules.tick_s),
            view.now_s,
        )
        if orders.releases:
            self._seen = ()
        return Orders(
            [self._index.get(o.market, ON_DEMAND) for o in orders.launches],
            [int(i) for i in orders.releases],
        )

    def _learn(self, view: View, names: tuple[Market, ...], standing: Counter[Market]) -> None:
        newest_s = view.now_s - self.rules.tick_s
        accepted = {
            names[h.zone] for h in view.held if h.zone != ON_DEMAND and h.launched_s >= newest_s
        }
        self.beliefs = markets.learn(
            self.beliefs,
            markets.Seen(
                now_s=view.now_s,
                standing=standing,
                reclaimed=Counter(names[h.zone] for h in view.reclaimed),
                refused=frozenset(names[zone] for zone in view.failed),
                accepted=frozenset(accepted),
            ),
        )

    def _stand(self, held: Held, names: tuple[Market, ...], now_s: float) -> buying.Stand:
        left_s = held.launched_s + self.rules.cold_start_s - now_s
        return buying.Stand(
            id=str(held.id),
            market=BRIDGE if held.zone == ON_DEMAND else names[held.zone],
            spot=held.zone != ON_DEMAND,
            ready_in_s=0.0 if held.ready else max(left_s, 1.0),
            since_s=held.launched_s,
        )
