"""What a tier's replicas cost per hour, against `placement.maxHourlyCost`. Called by the placement.

Money is integer micro-USD. A price that is unknown is not zero: where a limit is set, a pool without
a price takes no launch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from spotinference.core.fleet import Place
from spotinference.core.observed import Market


def affordable(
    place: Place, counts: Mapping[Market, int], places: Iterable[Place], most: int | None
) -> bool:
    """Whether one more replica there leaves the hourly cost of `counts` at most at `most`."""
    if most is None:
        return True
    price = place.pool.price
    if price is None:
        return False
    return hourly(counts, places) + price.micro_usd_per_hour <= most


def hourly(counts: Mapping[Market, int], places: Iterable[Place]) -> int:
    """What `counts` cost per hour, as far as prices are known."""
    return sum(
        counts[p.market] * p.pool.price.micro_usd_per_hour
        for p in places
        if p.pool.price is not None
    )


def dollars(micro_usd: int) -> str:
    """`$0.35`: as few digits as say it exactly."""
    return f"${micro_usd / 1e6:.6f}".rstrip("0").rstrip(".")


def said(place: Place) -> str:
    """A market with its price, for people."""
    price = place.pool.price
    cost = "has no price" if price is None else f"at {dollars(price.micro_usd_per_hour)}"
    return f"{place.market} {cost}"
