"""Which replicas to launch and to let go now: the cheapest set that keeps the promise.

A shortage, fewer than `need` replicas ready, has a price. What one more replica is worth is that
price times how much less likely it makes a shortage before a replacement could be ready; it is
bought where that exceeds its own price, and let go where it no longer does. Below `need` everything
is bought: spot where the market is calm, and on-demand until spot stands. Pure; called by the
operator's placement and by the simulator with the same beliefs (`markets`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from spotinference.core.markets import HOUR_S, Beliefs, region
from spotinference.core.observed import Market

SHORTAGE_H = 30.0
"""That a shortage happens is as bad as paying for this many more hours of a spot replica."""
SHORTAGE_RATE = 90.0
"""While it lasts, each hour of it is as bad as this many more."""
KEEP = 0.8
"""A spare is kept until its worth is below this share of its price: no buying and selling."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A market where a replica may be launched."""

    market: Market
    price: float
    """per replica, in any one unit"""
    spot: bool = True


@dataclass(frozen=True, slots=True)
class Stand:
    """A replica that is paid for."""

    id: str
    market: Market
    spot: bool
    ready_in_s: float
    """0: ready now"""
    since_s: float
    """when it was launched"""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is promised, and what time and shortage cost."""

    need: int
    cold_start_s: float
    look_every_s: float
    """how long a loss may go unseen"""
    shortage_h: float = SHORTAGE_H

    @property
    def exposed_s(self) -> float:
        """From a loss until its replacement is ready."""
        return self.cold_start_s + self.look_every_s

    @property
    def shortage_weight(self) -> float:
        """Price of being one reclaim away from a shortage, per hour, in hourly spot prices."""
        return self.shortage_h * HOUR_S / self.cold_start_s + SHORTAGE_RATE


@dataclass(frozen=True, slots=True)
class Orders:
    launches: tuple[Offer, ...] = ()
    """one for each replica"""
    releases: tuple[str, ...] = ()
    """ids of replicas"""


@dataclass(slots=True)
class Risk:
    """How likely it is that too many go before a replacement is ready. Remembers what it worked out."""

    beliefs: Beliefs
    terms: Terms
    now_s: float
    _rates: dict[Market, float] = field(default_factory=dict)
    _known: dict[tuple[tuple[tuple[Market, int], ...], int], float] = field(default_factory=dict)

    def rate(self, market: Market) -> float:
        """Reclaims to expect in this market until a replacement would be ready."""
        found = self._rates.get(market)
        if found is None:
            horizon_s = self.terms.exposed_s
            belief = self.beliefs.of(market, self.now_s)
            found = belief.reclaims_per_h(self.now_s, horizon_s) * horizon_s / HOUR_S
            self._rates[market] = found
        return found

    def shortage(self, spot: Mapping[Market, int], sure: int) -> float:
        """Probability that fewer than `need` are left; `sure` replicas cannot be reclaimed."""
        total = sum(spot.values()) + sure
        spares = total - self.terms.need
        if spares < 0:
            return 1.0
        if total == sure:
            return 0.0
        key = (tuple(sorted((m, n) for m, n in spot.items() if n > 0)), spares)
        found = self._known.get(key)
        if found is None:
            found = max(0.0, 1.0 - sum(self._losses(key[0])[: spares + 1]))
            self._known[key] = found
        return found

    def _losses(self, spot: Iterable[tuple[Market, int]]) -> list[float]:
        """[k]: probability that k replicas are lost; regions are taken as independent."""
        regions: dict[str, list[tuple[Market, int]]] = {}
        for market, count in spot:
            regions.setdefault(region(market.zone), []).append((market, count))
        losses = [1.0]
        for group in regions.values():
            losses = _sum_of(losses, self._losses_in_region(group))
        return losses

    def _losses_in_region(self, group: Sequence[tuple[Market, int]]) -> list[float]:
        """Each market for itself, mixed with a shock that takes the whole region."""
        shared = self.beliefs.joint.mean if len(group) > 1 else 0.0
        alone = [1.0]
        for market, count in group:
            alone = _sum_of(alone, self._losses_in_market(self.rate(market) * (1 - shared), count))
        if not shared:
            return alone
        together = sum(self.rate(market) for market, _ in group) * shared / 2
        struck = -math.expm1(-together)
        return [*((1 - struck) * p for p in alone[:-1]), (1 - struck) * alone[-1] + struck]

    def _losses_in_market(self, rate: float, count: int) -> list[float]:
        """A reclaim takes all with the learned share, else any smaller number alike."""
        struck = -math.expm1(-rate)
        if count == 1:
            return [1 - struck, struck]
        whole = self.beliefs.whole.mean
        part = struck * (1 - whole) / (count - 1)
        return [1 - struck, *[part] * (count - 1), struck * whole]


def decide(
    held: Sequence[Stand], offers: Sequence[Offer], beliefs: Beliefs, terms: Terms, now_s: float
) -> Orders:
    """What to launch and to release now. Markets in back-off are not offered a launch."""
    risk = Risk(beliefs, terms, now_s)
    standing = _by_market(held)
    spot_price = min((o.price for o in offers if o.spot), default=1.0)
    sure = [o for o in offers if not o.spot]
    bridge = min(sure, key=lambda o: o.price, default=None)
    # What can be taken away is bought only where it costs less than what cannot.
    spot = [
        o
        for o in offers
        if o.spot and beliefs.open(o.market, now_s) and (bridge is None or o.price < bridge.price)
    ]
    launches = _spot_launches(standing, spot, risk, spot_price)
    held_sure = [s for s in held if not s.spot]
    wanted = 0 if bridge is None else _sure_wanted(standing, bridge.price / spot_price, risk)
    if bridge is not None:
        launches += [bridge] * (wanted - len(held_sure))
    releases = _release_sure(
        held, wanted, terms, 1 if bridge is None else bridge.price / spot_price
    )
    if not launches:
        releases += _release_spot(held, releases, offers, risk, spot_price)
    return Orders(tuple(launches), tuple(releases))


def launch_score(offer: Offer, standing: Mapping[Market, int], risk: Risk, unit: float) -> float:
    """Hourly cost of a replica there, the worry included: what goes with it makes it worse."""
    here = standing.get(offer.market, 0)
    domain = region(offer.market.zone)
    near = sum(n for m, n in standing.items() if m != offer.market and region(m.zone) == domain)
    crowd = 1 + 2 * here + risk.beliefs.joint.mean * near
    return offer.price / unit + risk.terms.shortage_h * risk.rate(offer.market) * crowd


def worth(standing: Mapping[Market, int], market: Market, risk: Risk, sure: int = 0) -> float:
    """What one more spot replica there is worth per hour, in hourly prices of the cheapest one."""
    gain = risk.shortage(standing, sure) - risk.shortage(_plus(standing, market), sure)
    return risk.terms.shortage_weight * gain


def _spot_launches(
    before: Mapping[Market, int], offers: Sequence[Offer], risk: Risk, unit: float
) -> list[Offer]:
    """Up to `need` wherever it is calm, then spares as long as they are worth their price."""
    standing = dict(before)
    launches: list[Offer] = []
    left = list(offers)
    while left:
        if sum(standing.values()) < risk.terms.need:
            best = min(left, key=lambda o: launch_score(o, standing, risk, unit))
        else:
            best = min(left, key=lambda o: risk.shortage(_plus(standing, o.market), 0))
            if worth(standing, best.market, risk) <= best.price / unit:
                break
        launches.append(best)
        standing = _plus(standing, best.market)
        probing = best.market in risk.beliefs.markets and (
            risk.beliefs.markets[best.market].backoff_s > 0
        )
        if probing or launches.count(best) >= risk.terms.need:
            left.remove(best)  # one at a time where the last launch was refused
    return launches


def _sure_wanted(standing: Mapping[Market, int], price: float, risk: Risk) -> int:
    """On-demand replicas that are worth their price beside the spot replicas that stand."""
    count = sum(standing.values())
    wanted = 0
    while wanted < risk.terms.need:
        gain = risk.shortage(standing, wanted) - risk.shortage(standing, wanted + 1)
        if count + wanted >= risk.terms.need and risk.terms.shortage_weight * gain <= price:
            break
        wanted += 1
    return wanted


def _release_sure(held: Sequence[Stand], wanted: int, terms: Terms, price: float) -> list[str]:
    """The newest first: ready ones once enough others are, others once they would come too late."""
    sure = [s for s in held if not s.spot]
    released: list[str] = []
    for stand in sorted(sure, key=lambda s: -s.since_s):
        if len(sure) - len(released) <= wanted:
            break
        others = sorted(s.ready_in_s for s in held if s.id != stand.id and s.id not in released)
        if len(others) < terms.need:
            break
        sooner_s = others[terms.need - 1] - stand.ready_in_s
        if stand.ready_in_s <= 0:
            spare = sooner_s <= 0
        else:
            rest_s = stand.ready_in_s + max(0.0, sooner_s)
            spare = terms.shortage_weight * max(0.0, sooner_s) <= price * rest_s
        if spare:
            released.append(stand.id)
    return released


def _release_spot(
    held: Sequence[Stand], gone: Sequence[str], offers: Sequence[Offer], risk: Risk, unit: float
) -> list[str]:
    """Spares whose worth has fallen below `KEEP` of their price, the least useful first."""
    prices = {o.market: o.price / unit for o in offers}
    left = [s for s in held if s.id not in gone]
    released: list[str] = []
    while sum(s.spot for s in left) > risk.terms.need:
        standing = _by_market(left)
        market = min(standing, key=lambda m: risk.shortage(_plus(standing, m, -1), 0))
        there = [s for s in left if s.market == market]
        victim = min(there, key=lambda s: (s.ready_in_s <= 0, -s.since_s))
        fresh = victim.ready_in_s > 0
        if worth(_plus(standing, market, -1), market, risk) >= prices.get(market, 1.0) * (
            1.0 if fresh else KEEP
        ):
            break
        ready = sum(s.ready_in_s <= 0 for s in left)
        if not fresh and ready <= risk.terms.need:
            break
        left.remove(victim)
        released.append(victim.id)
    return released


def _by_market(held: Iterable[Stand]) -> dict[Market, int]:
    """Spot replicas in each market."""
    standing: dict[Market, int] = {}
    for stand in held:
        if stand.spot:
            standing[stand.market] = standing.get(stand.market, 0) + 1
    return standing


def _plus(standing: Mapping[Market, int], market: Market, count: int = 1) -> dict[Market, int]:
    return {**standing, market: standing.get(market, 0) + count}


def _sum_of(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """The distribution of a sum of two independent counts."""
    out = [0.0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            out[i + j] += x * y
    return out
