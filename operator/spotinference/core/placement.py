"""Where replicas stand: the number of each market's Deployment, and which replica goes when one
must go. A replica keeps its place while nothing is wrong with it, unless it pays to move it (`moves`);
where the next one goes is the matter of `choice`.

At most `maxReplicas` are wanted in sum. One more may start to relieve an on-demand one or one that is to
leave its market (`moves`), and a silent node's replica may hold its slot beyond that for
`fleet.STALE_HOLD_S`, because its node may return.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from spotinference.core import bridge, choice, moves, outlook, spares, spending
from spotinference.core.choice import Draft, Terms
from spotinference.core.fleet import STALE_HOLD_S, Fleet, Place, Replica, Standing
from spotinference.core.observed import Market
from spotinference.core.outlook import Outlook, newly_leaving
from spotinference.core.plan import Doom, DoomReason, Pardon
from spotinference.core.regret import Regret
from spotinference.core.spares import Spares


@dataclass(frozen=True, slots=True)
class Placement:
    counts: Mapping[Market, int]
    """replicas of each market's Deployment, held slots included"""
    outlook: Outlook
    dooms: tuple[Doom, ...]
    pardons: tuple[Pardon, ...]
    removals: tuple[Replica, ...]
    """pods to delete although their Deployment does not shrink: lost, or in the way"""
    unplaced: int
    """wanted replicas for which there is no place at all"""
    nowhere: bool
    """no market may be given a replica: all are cordoned, gone, or not to be used"""
    look_again_at: tuple[datetime, ...]
    why: str = ""
    """where replicas are added, and why there; empty when none is"""
    spares: int = 0
    """of the replicas asked for, so many are spares"""
    too_dear: tuple[Place, ...] = ()
    """markets that would take a wanted replica, were it not for `max_hourly_cost`"""
    regret: Regret | None = None
    """what staying has cost too much by now, or the move under way"""


def place(fleet: Fleet, terms: Terms) -> Placement:
    """The new numbers. Pure arithmetic on what stands; empty of writes when all is well."""
    draft = _draft(fleet, terms)
    _mark_leaving(draft, fleet)
    _mark_useless(draft, fleet)
    aim = terms.wanted - _retire(draft, fleet)
    moving = bridge.exchange(
        draft.places,
        draft.counts,
        wanted=terms.wanted,
        base=terms.base,
        limit=terms.limit,
        now=terms.now,
    )
    draft.timers += moving.look_again_at
    spare = _spares(draft)
    move = moves.consider(draft, fleet, spare)
    extra = max(moving.room, spare.kept) + move.room
    stood = dict(draft.counts)
    _shrink(draft, sum(draft.counts.values()) - terms.wanted - extra, move.leave)
    moved = move.leave is not None and draft.counts[move.leave] < stood[move.leave]
    unplaced = _grow(draft, aim - sum(draft.counts.values()))
    _relieve(draft, aim + moving.room - sum(draft.counts.values()))
    if move.launch is not None:
        draft.counts[move.launch.market] += 1
    more = spare.more is not None and moving.room == 0 and not move.under_way
    if spare.more is not None and more:
        _launch(draft, spare.more)
        draft.why[spare.more.market] = f"a spare on {choice.reason(draft, spare.more)}"
    draft.counts |= draft.dropped
    for p in fleet.places:
        draft.counts[p.market] += p.held
    return Placement(
        counts=draft.counts,
        outlook=draft.outlook,
        dooms=tuple(draft.dooms),
        pardons=_pardons(draft, fleet),
        removals=_removals(draft, fleet),
        unplaced=unplaced,
        nowhere=not choice.usable(fleet.places, burst=terms.burst, base=terms.base),
        look_again_at=tuple(draft.timers),
        why=_why(draft),
        too_dear=tuple(draft.too_dear),
        regret=None if moved else move.regret,
        spares=spare.kept + more,
    )


def _draft(fleet: Fleet, terms: Terms) -> Draft:
    """The markets that the tier names, as they stand."""
    named = tuple(p for p in fleet.places if not p.dropped)
    draft = Draft(
        terms=terms,
        places=named,
        counts={p.market: p.kept for p in named},
        outlook=outlook.of(fleet, terms.now, terms.losses),
        occupied=frozenset(p.market.zone for p in fleet.places if p.dropped),
    )
    draft.refused = sum(
        not r.volume_elsewhere
        for p in named
        if p.pool.capacity_type == "spot"
        for r in p.having(Standing.REFUSED)
    )
    return draft


def _retire(draft: Draft, fleet: Fleet) -> int:
    """Let go what stands in markets that the tier names no more, each once one is ready elsewhere.

    Answers how many of the wanted ones may not start yet, for want of room under the limit. Nothing
    is waited for where the zone's only volume must be set free first.
    """
    terms = draft.terms
    places = tuple(p for p in fleet.places if p.dropped)
    going = Draft(terms, places, {p.market: p.kept for p in places}, draft.outlook)
    blocked = {p.market.zone for p in draft.places if p.open} if terms.exclusive else set()
    served = [r for p in places if p.market.zone not in blocked for r in p.replicas if r.counts]
    serving = sum(r.view.ready or r.view.loaded for r in served)  # or misses a probe
    elsewhere = sum(len(p.having(Standing.READY)) for p in draft.places)
    staying = min(serving, max(0, terms.wanted - elsewhere))
    _shrink(going, sum(going.counts.values()) - staying)
    draft.dooms += going.dooms
    draft.timers += going.timers
    draft.victims |= going.victims
    draft.dropped = going.counts
    draft.dropped_cost = spending.hourly(going.counts, places)
    return max(0, staying - max(terms.limit - terms.wanted, bridge.SURGE))


def _spares(draft: Draft) -> Spares:
    terms = draft.terms
    most = min(terms.overprovision, terms.limit - terms.wanted)
    if most <= 0 or terms.wanted <= 0:
        return spares.NONE
    draft.timers.append(terms.now + timedelta(seconds=spares.LOOK_EVERY_S))
    spot = [p for p in draft.places if p.pool.capacity_type == "spot"]
    return spares.decide(
        draft.places,
        [p for p in choice.able(draft, spot) if choice.takes_launches(draft, p)],
        moves.before(draft),
        draft.outlook,
        wanted=terms.wanted,
        base=terms.base,
        most=most,
        cold_start_s=terms.cold_start_s,
    )


def _mark_leaving(draft: Draft, fleet: Fleet) -> None:
    """Out of routing at once: every replica whose node has a notice or is silent.

    One that is marked already is marked again when its end comes nearer: gateways move by it.
    """
    now = draft.terms.now
    for replica in fleet.every:
        node = replica.view.node
        if replica.standing is Standing.SILENT and newly_leaving(replica):
            until = now + timedelta(seconds=STALE_HOLD_S)
            draft.dooms.append(_doom(replica, until, DoomReason.NODE_LOST))
        elif replica.standing is Standing.LEAVING and (newly_leaving(replica) or _sooner(replica)):
            notice = node.notice if node is not None else None
            until = notice.deadline if notice is not None else now
            draft.dooms.append(_doom(replica, until, DoomReason.NOTICE))
        if replica.standing in {Standing.SILENT, Standing.LEAVING}:
            marked = replica.view.doomed_until
            if node is not None and node.notice is not None:
                draft.timers.append(replica.drains_until or node.notice.deadline)
            elif marked is not None and marked > now:
                draft.timers.append(marked)


def _sooner(replica: Replica) -> bool:
    """Its node's notice names an end before the one that the replica is marked with."""
    node, marked = replica.view.node, replica.view.doomed_until
    if node is None or node.notice is None or marked is None:
        return False
    return node.notice.deadline <= marked - timedelta(seconds=1)


def _mark_useless(draft: Draft, fleet: Fleet) -> None:
    """Of several pods in one Deployment its ReplicaSet is to choose those that were given up, and
    those whose node vanished: they may be called ready for a while.
    """
    reasons = {Standing.FAILED: DoomReason.SCALE_DOWN, Standing.LOST: DoomReason.NODE_LOST}
    for p in fleet.places:
        for r in p.active:
            if len(p.active) > 1 and r.standing in reasons and r.view.doomed_until is None:
                draft.dooms.append(_doom(r, draft.terms.now, reasons[r.standing]))


def _shrink(draft: Draft, surplus: int, leave: Market | None = None) -> None:
    """Take `surplus` away: pods not made yet, then not ready, then idle; busy ones drain first.

    `leave`: where a replica goes before all others, because one has taken its place.
    """
    for p in reversed(draft.places):
        while surplus > 0 and draft.counts[p.market] > 0 and p.missing > 0:
            cut = min(surplus, p.missing, draft.counts[p.market])
            draft.counts[p.market] -= cut
            surplus -= cut
            break
    index = {p.market: p.index for p in draft.places}
    sure = [r.view.uid for p in choice.sure_places(draft) for r in p.replicas if r.counts]
    dear = set(sure[draft.terms.base :])
    candidates = [r for p in draft.places for r in _staying(p, draft.counts[p.market])]
    candidates.sort(
        key=lambda r: (
            r.view.ready,
            not r.draining,
            not r.hinted,
            0 if r.view.uid in dear else 2 if r.view.uid in sure else 1,
            r.busy,
            r.work,
            -index[r.view.market],
            -r.view.created_at.timestamp(),
            r.view.name,
        )
    )
    ready = sum(r.view.ready for r in candidates) - draft.terms.wanted
    relieved = [r for r in candidates if r.view.ready and r.view.uid in dear][: max(0, ready)]
    candidates.sort(key=lambda r: (r.view.market != leave, r not in relieved))
    for replica in candidates:
        if surplus <= 0:
            break
        if draft.counts[replica.view.market] <= 0:
            continue
        surplus -= 1
        draft.victims.add(replica.view.uid)
        _dismiss(draft, replica)


def _staying(place_: Place, count: int) -> list[Replica]:
    """Without those that go already: its Deployment is smaller than that, and its ReplicaSet is late."""
    counted = [r for r in place_.replicas if r.counts]
    counted.sort(
        key=lambda r: (
            r.view.node is not None,
            r.view.ready,
            r.view.doomed_until is None,
            -r.view.created_at.timestamp(),
        )
    )
    return counted[max(0, len(counted) - count) :]


def _dismiss(draft: Draft, replica: Replica) -> None:
    """Remove one replica, or let it drain first when it has work."""
    market, now = replica.view.market, draft.terms.now
    until = replica.view.doomed_until
    drained = until is not None and until <= now
    if replica.busy and not drained:
        if until is None:
            until = now + timedelta(seconds=draft.terms.drain_s)
            draft.dooms.append(_doom(replica, until, DoomReason.SCALE_DOWN))
        draft.timers.append(until)
        return
    stands = next(p for p in draft.places if p.market == market)
    draft.counts[market] -= 1
    if until is None and replica.view.ready and len(stands.active) > 1:
        # Several pods in one Deployment: the mark makes its ReplicaSet choose this one.
        until = now + timedelta(seconds=draft.terms.drain_s)
        draft.dooms.append(_doom(replica, until, DoomReason.SCALE_DOWN))


def _grow(draft: Draft, need: int) -> int:
    """Find places for `need` replicas; returns how many found none."""
    waiting = _refused_by_market(draft)
    for left in range(need, 0, -1):
        best = choice.best_open(draft)
        if best is None:
            draft.too_dear = choice.too_dear(draft)
            best = choice.stay(draft, waiting) or choice.next_probe(draft)
        if best is None:
            return left
        _launch(draft, best)
    return 0


def _launch(draft: Draft, place_: Place) -> None:
    """One more there. Of a market that is tried again, CapacityAvailable says so, once."""
    if draft.outlook.refused_at(place_.market) is None:
        draft.why[place_.market] = choice.reason(draft, place_)
    draft.counts[place_.market] += 1


def _relieve(draft: Draft, room: int) -> None:
    """Start up to `room` replicas where those that stand are to go: nobody waits for them.

    So they are what tries the markets that refused; the one that did so longest ago comes first.
    """
    fills = choice.sure_count(draft) < draft.terms.base
    kind = choice.sure_places(draft) if fills else choice.other_places(draft)
    for _ in range(room):
        best = choice.most_promising(draft, choice.able(draft, kind))
        if best is None:
            return
        _launch(draft, best)


def _why(draft: Draft) -> str:
    """Only of what changes: a launch that is asked for already was explained then."""
    before = {p.market: p.spec_replicas for p in draft.places}
    return "; ".join(
        f"{market}: {why}"
        for market, why in draft.why.items()
        if draft.counts[market] > before[market]
    )


def _refused_by_market(draft: Draft) -> dict[Market, list[Replica]]:
    return {p.market: list(p.having(Standing.REFUSED)) for p in draft.places}


def _pardons(draft: Draft, fleet: Fleet) -> tuple[Pardon, ...]:
    """Marks whose cause is gone: the node came back, or the load did."""
    return tuple(
        Pardon(pod=r.view.name, uid=r.view.uid)
        for p in fleet.places
        for r in p.replicas
        if r.draining
        and r.view.uid not in draft.victims
        and draft.counts[p.market] >= len(p.active)
    )


def _removals(draft: Draft, fleet: Fleet) -> tuple[Replica, ...]:
    """Lost pods, and leaving or failed ones that hold a slot which their replacement needs."""
    removals = [r for r in fleet.every if r.standing is Standing.LOST]
    for p in fleet.places:
        leaving = [r for r in p.having(Standing.LEAVING, Standing.FAILED) if r.drains_until is None]
        staying = sum(r not in leaving for r in p.active if r not in removals)
        in_the_way = max(0, draft.counts[p.market] - staying)
        removals += leaving[:in_the_way]
    return tuple(removals)


def _doom(replica: Replica, until: datetime, reason: DoomReason) -> Doom:
    return Doom(
        pod=replica.view.name,
        uid=replica.view.uid,
        until=until.replace(microsecond=0),
        reason=reason,
    )
