"""Moving a replica that stands well, because another market costs less: when, which one, and where.

Staying too long and moving too often are the two ways to lose, as in renting or buying skis. What
staying has cost the tier beyond its best market is added up (`regret`, kept in `status.move`), goes down
again while the tier stands best where it is, and when it has reached the cost of a move, one is made.
So moves never cost more than what staying had cost too much: after a lasting change that is twice what
who knew the prices would have lost, which is the least that any rule can promise who does not.

Make before break: the new replica is ready for `bridge.PROVEN_S` before the old one drains. One at a
time, and only while nothing else is going on. Called by `placement`; docs/policies.md has the reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from spotinference.core import choice, outlook
from spotinference.core import regret as regrets
from spotinference.core.bridge import PROVEN_S
from spotinference.core.buying import Risk
from spotinference.core.choice import Draft
from spotinference.core.fleet import Fleet, Place, Standing
from spotinference.core.launches import LATE
from spotinference.core.markets import HOUR_S, region
from spotinference.core.observed import Market
from spotinference.core.regret import Regret
from spotinference.core.spares import Spares

CLOCKS_S = 60.0
"""The API server's clock may be so far behind ours."""
LATELY_S = 3600.0
"""A market that refused a launch within this is not moved to, although its pause is over."""


@dataclass(frozen=True, slots=True)
class Move:
    """One that could be made now. Money in micro-USD."""

    origin: Market
    target: Place
    saves: int
    """per hour, interruptions counted; zero and below: it does not pay"""
    overpays: int
    """what all replicas together cost more per hour than if they stood there; below zero as above"""
    costs: int
    """while both replicas are paid for"""


@dataclass(frozen=True, slots=True)
class Step:
    """What a move asks of the placement in this round."""

    regret: Regret | None = None
    room: int = 0
    """so many more than wanted may stand"""
    launch: Place | None = None
    leave: Market | None = None
    """the new replica is proven: one here may go"""

    @property
    def under_way(self) -> bool:
        return self.room > 0 or self.leave is not None


def before(draft: Draft) -> Mapping[Market, int]:
    """What stands, a replica that is to be relieved by a move not counted: the new one is no spare."""
    origin = None if draft.terms.regret is None else draft.terms.regret.origin
    return {m: n - (m == origin and n > 0) for m, n in draft.counts.items()}


def consider(draft: Draft, fleet: Fleet, spare: Spares) -> Step:
    """The next step of a move, or what to remember until one pays."""
    terms, regret = draft.terms, draft.terms.regret
    due = terms.wanted + spare.kept
    if terms.wanted <= 0:
        return Step()
    if regret is not None and regret.target is not None:
        going_on = _under_way(draft, regret, due)
        if going_on is not None:
            return going_on
        regret = None
    found = best(draft)
    regret = regrets.counted(regret, 0 if found is None else found.overpays, terms.now)
    if found is None or regret is None or found.saves <= 0:
        return Step(regret)
    missing = found.costs - regret.overpaid_at(terms.now)
    if missing > 0:
        draft.timers.append(terms.now + timedelta(hours=missing / found.overpays))
        return Step(regret)
    if spare.more is not None or not _quiet(draft, fleet, due):
        return Step(regret)
    started = Regret(terms.now, origin=found.origin, target=found.target.market)
    draft.why[found.target.market] = _reason(found, regret.overpaid_at(terms.now))
    return Step(started, room=1, launch=found.target)


def best(draft: Draft) -> Move | None:
    """The move that saves most; None without spot, prices, or a market of another price that is open.

    Not between markets of one price: that was replayed, and a calmer market pays for no move.
    """
    spot = [p for p in draft.places if p.pool.capacity_type == "spot"]
    standing = {p.market: n for p in spot if (n := p.on_nodes)}
    if not standing or any(p.pool.price is None for p in spot):
        return None
    terms = draft.terms
    risk = outlook.risk(draft.outlook, terms.wanted, terms.cold_start_s)
    stakes = Stakes(standing, outlook.prices(tuple(spot)), risk)
    targets = list(_targets(draft))
    found = [(gain, m, t) for m in standing for t in targets if (gain := stakes.gain(m, t.market))]
    if not found:
        return None
    saves, origin, target = max(found, key=lambda f: (f[0], -f[2].index))
    each = [max((g for g, m, _ in found if m == here), default=0.0) for here in standing]
    overpays = sum(n * max(0.0, g) for n, g in zip(standing.values(), each, strict=True))
    both_h = (terms.cold_start_s + PROVEN_S + terms.drain_s) / HOUR_S
    return Move(
        origin,
        target,
        saves=round(saves),
        overpays=round(overpays if saves > 0 else saves),
        costs=max(1, round(both_h * max(stakes.price(origin), stakes.price(target.market)))),
    )


@dataclass(frozen=True, slots=True)
class Stakes:
    """What replicas cost per hour where they stand and where they could, interruptions counted."""

    standing: Mapping[Market, int]
    """on spot"""
    prices: Mapping[Market, float]
    """of spot markets; any other is reserved: paid for in any case, and taken back by nobody"""
    risk: Risk

    def price(self, market: Market) -> float:
        return self.prices.get(market, 0.0)

    def gain(self, origin: Market, target: Market) -> float:
        """What the move saves per hour: positive only at a lower price; 0 at the same one."""
        less = self.price(origin) - self.price(target)
        if less == 0:
            return 0.0
        others = {**self.standing, origin: self.standing[origin] - 1}
        gain = self.stake(origin, others) - self.stake(target, others)
        return gain if less > 0 else min(gain, less)

    def stake(self, market: Market, others: Mapping[Market, int]) -> float:
        """Of one more replica there beside the others."""
        if market not in self.prices:
            return 0.0
        unit = min(self.prices.values())
        return self.prices[market] + unit * worry(market, others, self.risk)


def worry(market: Market, others: Mapping[Market, int], risk: Risk) -> float:
    """What interruptions of one more replica there cost per hour, in hourly prices of a spot replica.

    As in `buying.launch_score`, but what two markets of a region share is split between them: so each
    move lowers the same sum over all replicas, and no chain of moves comes back to where it began.
    """
    domain = region(market.zone)
    shared = sum(
        n * (risk.rate(market) + risk.rate(m)) / 2
        for m, n in others.items()
        if m != market and region(m.zone) == domain
    )
    alone = risk.rate(market) * (1 + 2 * others.get(market, 0))
    return risk.terms.shortage_h * (alone + risk.beliefs.joint.mean * shared)


def _targets(draft: Draft) -> Iterable[Place]:
    """Markets that take a launch, as far as is known, and did not refuse one lately."""
    since = draft.terms.now - timedelta(seconds=LATELY_S)
    for place in choice.able(draft, choice.other_places(draft)):
        refused_at = draft.outlook.refused_at(place.market)
        if choice.takes_launches(draft, place) and (refused_at is None or refused_at < since):
            yield place


def _quiet(draft: Draft, fleet: Fleet, due: int) -> bool:
    """All that should stand is ready, and nothing comes, goes, or bridges."""
    bridges = choice.sure_count(draft) - draft.terms.base
    return (
        sum(draft.counts.values()) == due
        and bridges <= 0
        and all(
            r.standing is Standing.READY and r.view.doomed_until is None and not r.hinted
            for r in fleet.every
        )
        and not any(p.missing for p in draft.places)
    )


def _under_way(draft: Draft, regret: Regret, due: int) -> Step | None:
    """Wait for the new replica, then let the old one go; None when there is nothing to wait for."""
    now, origin = draft.terms.now, regret.origin
    target = next((p for p in draft.places if p.market == regret.target), None)
    if origin is None or target is None or draft.counts.get(origin, 0) <= 0:
        return None
    if sum(draft.counts.values()) != due + 1:
        return None  # it is over; or the new one is needed otherwise, or not at all
    last = regret.at + timedelta(seconds=LATE * draft.terms.cold_start_s + target.refusal_s)
    ready_at = _ready_at(target, regret.at)
    if ready_at is None:
        draft.timers.append(last)
        return Step(regret, room=1) if now < last else None
    proven_at = ready_at + timedelta(seconds=PROVEN_S)
    if now < proven_at:
        draft.timers.append(proven_at)
        return Step(regret, room=1)
    return Step(regret, leave=origin)


def _ready_at(target: Place, began_at: datetime) -> datetime | None:
    """Since when the replica that the move launched has been ready: the newest one there.

    Its time is the API server's and the beginning is ours, so it may seem to be older than the move.
    """
    there = (r.view for r in target.replicas if r.counts)
    new = max(there, key=lambda view: view.created_at, default=None)
    if new is None or not new.ready or new.created_at < began_at - timedelta(seconds=CLOCKS_S):
        return None
    return new.ready_at or new.created_at


def _reason(move: Move, overpaid: int) -> str:
    saves, lost = (f"${x / 1e6:.3f}" for x in (move.saves, overpaid))
    return (
        f"instead of {move.origin}, which costs {saves} per hour more, interruptions counted, "
        f"and has cost {lost} more so far"
    )
