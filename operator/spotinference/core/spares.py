"""Spare replicas beyond the wanted ones (`placement.overprovision`), each only while it pays.

The same worth as in the simulator (`buying.worth`): how much less likely a spare makes it that fewer
than wanted are left before a replacement is ready, times the price of that. Called by the placement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spotinference.core import buying, outlook
from spotinference.core.buying import Risk
from spotinference.core.fleet import Place
from spotinference.core.observed import Market
from spotinference.core.outlook import Outlook

LOOK_EVERY_S = 300.0
"""A spare's worth falls by time passing, so it is looked at without anything happening."""


@dataclass(frozen=True, slots=True)
class Spares:
    kept: int = 0
    """of those that stand, so many are worth keeping"""
    more: Place | None = None
    """where one more is worth its price"""


NONE = Spares()


def decide(
    places: Sequence[Place],
    offered: Sequence[Place],
    counts: Mapping[Market, int],
    view: Outlook,
    *,
    wanted: int,
    base: int,
    most: int,
    cold_start_s: float,
) -> Spares:
    """`offered`: spot markets that take a launch now; `most` and `wanted` are at least 1. None while fewer than wanted stand, or while
    on-demand bridges for spot: what spot gives then is no spare.
    """
    spot = {
        p.market: n for p in places if p.pool.capacity_type == "spot" and (n := counts[p.market])
    }
    dear = sum(counts[p.market] for p in places if p.pool.capacity_type == "on-demand")
    sure = sum(counts.values()) - sum(spot.values())
    spares = sum(counts.values()) - wanted
    if spares < 0 or dear > base:
        return NONE
    risk = outlook.risk(view, wanted, cold_start_s)
    prices = outlook.prices(tuple(places))
    unit = min((prices[p.market] for p in places if p.pool.capacity_type == "spot"), default=1.0)
    kept = min(spares, most, sum(spot.values()))
    while kept > 0 and not _pays(spot, sure, risk, prices, unit):
        kept -= 1
        spot = _without_one(spot)
    if kept < spares or kept >= most:
        return Spares(kept)
    best = max(offered, key=lambda p: buying.worth(spot, p.market, risk, sure), default=None)
    if best is None or buying.worth(spot, best.market, risk, sure) <= prices[best.market] / unit:
        return Spares(kept)
    return Spares(kept, best)


def _pays(
    spot: Mapping[Market, int], sure: int, risk: Risk, prices: Mapping[Market, float], unit: float
) -> bool:
    """Whether the most useful of those that stand is worth most of its price: no buying and selling."""
    return any(
        buying.worth({**spot, m: spot[m] - 1}, m, risk, sure) >= buying.KEEP * prices[m] / unit
        for m in spot
    )


def _without_one(spot: Mapping[Market, int]) -> dict[Market, int]:
    most = max(spot, key=lambda m: spot[m])
    return {m: n - (m == most) for m, n in spot.items() if n > (m == most)}
