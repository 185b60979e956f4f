"""What standing where it does has cost a tier beyond its best market, added up; or its move under way.

Kept in `status.move`, so that a restarted operator goes on from it. `moves` says when it is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from spotinference.api import times
from spotinference.api.tier_status import MoveStatus
from spotinference.core.markets import HOUR_S
from spotinference.core.observed import Market

CHANGED = 0.1
"""A difference is remembered anew when it changed by more than this share: no write for each look."""


@dataclass(frozen=True, slots=True)
class Regret:
    """Money in micro-USD."""

    at: datetime
    overpaid: int = 0
    """by `at`"""
    per_hour: int = 0
    """since; below zero while the tier stands best where it is"""
    origin: Market | None = None
    target: Market | None = None
    """of the move under way; then nothing is added up"""

    def overpaid_at(self, now: datetime) -> int:
        hours = (now - self.at).total_seconds() / HOUR_S
        return max(0, round(self.overpaid + self.per_hour * hours))


def counted(regret: Regret | None, saves: int, now: datetime) -> Regret | None:
    """The regret with a difference of `saves` from now on; the same object while it holds."""
    overpaid = 0 if regret is None else regret.overpaid_at(now)
    if saves <= 0 and overpaid <= 0:
        return None
    if regret is not None and abs(saves - regret.per_hour) <= CHANGED * abs(regret.per_hour):
        return regret
    return Regret(now, overpaid, saves)


def of(status: MoveStatus | None, now: datetime | None = None) -> Regret | None:
    """What the status says. `now`: what was written by a clock ahead of ours counts from now."""
    if status is None:
        return None
    at = times.parse(status.at)
    at = at if now is None else min(at, now)
    origin, target = _market(status.origin), _market(status.target)
    return Regret(at, status.overpaid_micro_usd, status.micro_usd_per_hour, origin, target)


def written(regret: Regret | None) -> MoveStatus | None:
    """The status that `of` reads."""
    if regret is None:
        return None
    return MoveStatus(
        at=times.to_text(regret.at),
        overpaid_micro_usd=regret.overpaid,
        micro_usd_per_hour=regret.per_hour,
        origin=None if regret.origin is None else str(regret.origin),
        target=None if regret.target is None else str(regret.target),
    )


def _market(text: str | None) -> Market | None:
    pool, slash, zone = (text or "").partition("/")
    return Market(pool, zone) if slash else None
