"""What placement believes of a tier's markets: read from its status, renewed by what stands now.

Level-triggered: the same fleet seen twice teaches nothing the second time, because what was learned
stands in the status by then (`refusedAt`, `calmSince`). Nothing here changes by time passing, so a
tier in steady state is not written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from spotinference.api import times
from spotinference.api.tier_status import LossesStatus, MarketStatus
from spotinference.core import buying, markets
from spotinference.core.fleet import Fleet, Place, Replica, Standing
from spotinference.core.markets import JOINT, ONE_EVENT_S, WHOLE, Belief, Beliefs, Seen, Share
from spotinference.core.observed import Market
from spotinference.core.plan import DoomReason

LOOK_EVERY_S = 15.0


@dataclass(frozen=True, slots=True)
class Outlook:
    """Beliefs, and when each paused market last refused a launch or took a node."""

    beliefs: Beliefs
    now: datetime

    def paused(self, market: Market) -> bool:
        return not self.beliefs.open(market, self.now.timestamp())

    def refused_at(self, market: Market) -> datetime | None:
        """None: never, or a launch was accepted since."""
        belief = self.beliefs.markets.get(market)
        if belief is None or belief.backoff_s <= 0:
            return None
        return datetime.fromtimestamp(belief.closed_until_s - belief.backoff_s, UTC)

    def failed(self, market: Market) -> int:
        """Launches in a row there that found a node and never became ready."""
        belief = self.beliefs.markets.get(market)
        return 0 if belief is None else belief.failed

    def opens_at(self, market: Market) -> datetime | None:
        """When the pause is over; None where there is none."""
        if not self.paused(market):
            return None
        return datetime.fromtimestamp(self.beliefs.markets[market].closed_until_s, UTC)


def of(fleet: Fleet, now: datetime, losses: LossesStatus | None = None) -> Outlook:
    """The beliefs of the status, and what the fleet shows beyond them."""
    stored = {p.market: b for p in fleet.places if p.known and (b := belief_of(p.known, now))}
    known = Outlook(Beliefs(stored, *_shares(losses)), now)
    lost = {p.market: n for p in fleet.places if (n := _newly_lost(p, known))}
    refused = frozenset(p.market for p in fleet.places if _newly_refused(p, known))
    accepted = frozenset(p.market for p in fleet.places if _accepted(p, known)) - set(lost)
    failed = frozenset(p.market for p in fleet.places if _newly_failed(p, known))
    proven = frozenset(p.market for p in fleet.places if _proven(p, known))
    standing = {p.market: n for p in fleet.places if (n := p.on_nodes)}
    sure = frozenset(p.market for p in fleet.places if p.pool.capacity_type != "spot")
    seen = Seen(
        now.timestamp() // 1, standing, lost, refused, accepted, failed, proven - failed, sure
    )
    return Outlook(markets.learn(known.beliefs, seen), now)


def belief_of(status: MarketStatus, now: datetime) -> Belief | None:
    """What the status says; None where the market was never tried.

    What it says of later than `now` was written by a clock ahead of ours: taken for now.
    """
    latest_s = now.timestamp() // 1
    calm_since_s = _seconds(status.calm_since, latest_s)
    if calm_since_s is None:
        return None
    refused_s = _seconds(status.refused_at, latest_s)
    backoff_s = float(min(max(0, status.backoff_seconds), markets.LONGEST_FAILED_S))
    return Belief(
        calm_since_s=calm_since_s,
        watched_until_s=_seconds(status.watched_until, latest_s),
        backoff_s=backoff_s if refused_s is not None else 0.0,
        closed_until_s=0.0 if refused_s is None else refused_s + backoff_s,
        failed=max(0, status.failed_launches) if refused_s is not None else 0,
        reclaimed_s=_seconds(status.reclaimed_at, latest_s),
    )


def written(outlook: Outlook, market: Market) -> Mapping[str, str | int | None]:
    """The fields of the market's status that `belief_of` reads."""
    belief = outlook.beliefs.markets.get(market)
    if belief is None:
        return {}
    refused_at = outlook.refused_at(market)
    watched_s = belief.watched_until_s
    return {
        "calm_since": _text(belief.calm_since_s),
        "watched_until": None if watched_s is None else _text(watched_s),
        "backoff_seconds": round(belief.backoff_s),
        "refused_at": None if refused_at is None else times.to_text(refused_at),
        "failed_launches": belief.failed,
        "reclaimed_at": None if belief.reclaimed_s is None else _text(belief.reclaimed_s),
    }


def losses(outlook: Outlook) -> LossesStatus | None:
    """What `of` reads of losses that went together. Reclaims alone change it, and those change the
    status of their market in any case: it is never a write of its own.
    """
    whole, joint = outlook.beliefs.whole, outlook.beliefs.joint
    if whole == WHOLE and joint == JOINT:
        return None
    return LossesStatus(
        of_several=round(whole.chances - WHOLE.chances),
        whole=round(whole.hits - WHOLE.hits),
        neighbours=round(joint.chances - JOINT.chances),
        joint=round(joint.hits - JOINT.hits),
    )


def _shares(status: LossesStatus | None) -> tuple[Share, Share]:
    if status is None:
        return WHOLE, JOINT
    return (
        WHOLE.seen(max(0, status.whole), max(0, status.of_several)),
        JOINT.seen(max(0, status.joint), max(0, status.neighbours)),
    )


def prices(places: tuple[Place, ...]) -> Mapping[Market, float]:
    """Micro-USD per hour; all the same while one of them is unknown: then the tier's order decides."""
    known = {p.market: p.pool.price for p in places}
    if any(price is None for price in known.values()):
        return dict.fromkeys(known, 1.0)
    return {m: float(max(1, p.micro_usd_per_hour)) for m, p in known.items() if p is not None}


def risk(outlook: Outlook, wanted: int, cold_start_s: float) -> buying.Risk:
    terms = buying.Terms(max(1, wanted), cold_start_s, LOOK_EVERY_S)
    return buying.Risk(outlook.beliefs, terms, outlook.now.timestamp())


def newly_leaving(replica: Replica) -> bool:
    """Just now seen to go: not marked yet, and not on its way out for another reason."""
    gone = {Standing.LEAVING, Standing.SILENT, Standing.LOST}
    unmarked = replica.view.doomed_until is None or replica.view.doomed_reason in {
        None,
        DoomReason.SCALE_DOWN,
    }
    return replica.standing in gone and unmarked and not replica.view.deleting


def _newly_lost(place: Place, known: Outlook) -> int:
    at = known.refused_at(place.market)
    if at is not None and known.now - at < timedelta(seconds=ONE_EVENT_S):
        return 0
    return sum(newly_leaving(r) for r in place.replicas)


def _newly_refused(place: Place, known: Outlook) -> bool:
    at = known.refused_at(place.market)
    since = [_refused_since(place, r) for r in place.having(Standing.REFUSED)]
    return any(at is None or moment > at for moment in since)


def _refused_since(place: Place, replica: Replica) -> datetime:
    since = replica.view.unschedulable_since
    assert since is not None
    if not replica.volume_elsewhere:
        since += timedelta(seconds=place.refusal_s)
    return since


def _accepted(place: Place, known: Outlook) -> bool:
    """A launch after the last refusal found a node: there is capacity again.

    Where launches fail that says nothing: there one must become ready.
    """
    at = known.refused_at(place.market)
    return (
        at is not None
        and not known.failed(place.market)
        and any(
            r.counts and r.view.node is not None and (r.view.scheduled_at or r.view.created_at) > at
            for r in place.replicas
        )
    )


def _newly_failed(place: Place, known: Outlook) -> bool:
    """A launch was given up that was made since the last one was."""
    at = known.refused_at(place.market) if known.failed(place.market) else None
    return any(at is None or r.view.created_at > at for r in place.having(Standing.FAILED))


def _proven(place: Place, known: Outlook) -> bool:
    """A launch made since the last failure is ready."""
    at = known.refused_at(place.market) if known.failed(place.market) else None
    ready = place.having(Standing.READY)
    return at is not None and any(r.view.created_at > at for r in ready)


def _seconds(text: str | None, latest_s: float) -> float | None:
    return None if text is None else min(times.parse(text).timestamp(), latest_s)


@lru_cache(maxsize=4096)
def _text(seconds: float) -> str:
    return times.to_text(datetime.fromtimestamp(seconds, UTC))
