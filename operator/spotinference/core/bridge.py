"""How many replicas may stand beyond the wanted ones while some of them change their kind.

On-demand replicas are a bridge: spot ones start beside them, and each that has proven itself lets one
on-demand replica go. With `placement.onDemand.base` the same happens the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from spotinference.core.fleet import Place, Standing
from spotinference.core.observed import Market

PROVEN_S = 120.0
"""A replica must have been ready this long before the one that it relieves goes."""
SURGE = 1
"""May stand above `limit` where that leaves no room: else the dear replica stays for as long as the
tier is that large, which for a tier of one replica is until it sleeps."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """`room`: so many more than wanted may stand, because so many have yet to be relieved."""

    room: int
    look_again_at: tuple[datetime, ...]
    """when the next one will have proven itself"""


def exchange(
    places: Sequence[Place],
    counts: Mapping[Market, int],
    *,
    wanted: int,
    base: int,
    limit: int,
    now: datetime,
) -> Exchange:
    """All at once, as far as `limit` leaves room: one by one they would be paid for hours longer."""
    sure = [p for p in places if p.pool.capacity_type == "on-demand"]
    other = [p for p in places if p.pool.capacity_type != "on-demand"]
    dear = _exchanged(counts, sure, base, wanted - _proven(other, now))
    cheap = _exchanged(counts, other, wanted - base, wanted - min(base, _proven(sure, now)))
    staying, leaving = max(dear, cheap)
    if leaving:
        staying = min(staying, sum(counts.values()) - wanted - leaving)
    room = max(0, min(staying, max(limit - wanted, SURGE)))
    return Exchange(room, _proven_at(other if dear > cheap else sure, now) if room else ())


def _exchanged(
    counts: Mapping[Market, int], places: Sequence[Place], due: int, until: int
) -> tuple[int, int]:
    """Of the replicas beyond those due there: how many must stay for now, and how many may go."""
    there = sum(counts[p.market] for p in places)
    staying = max(0, min(there, max(due, until)) - due)
    return staying, max(0, there - due - staying)


def _proven(places: Sequence[Place], now: datetime) -> int:
    since = now - timedelta(seconds=PROVEN_S)
    return sum(at <= since for at in _ready_at(places))


def _proven_at(places: Sequence[Place], now: datetime) -> tuple[datetime, ...]:
    due = (at + timedelta(seconds=PROVEN_S) for at in _ready_at(places))
    return tuple(at for at in due if at > now)


def _ready_at(places: Sequence[Place]) -> list[datetime]:
    ready = (r.view.ready_at for p in places for r in p.having(Standing.READY))
    return [at for at in ready if at is not None]
