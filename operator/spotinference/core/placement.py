"""Where replicas stand: the number of each market's Deployment, and which replica goes when one
must go. A replica keeps its place while nothing is wrong with it.

Where the next one goes is what `buying.launch_score` says of each market: its price, how calm it has
been, and what stands there already. A market that refused a launch, or took a node away, is avoided
for a while (`outlook`). A replica that spot refused is bridged by on-demand at once, and from then on
spot is tried beside the bridge, where nobody waits for it (`bridge`). Without a bridge, when every market
refuses, it moves on to the market that refused longest ago, after at least `PROBE_DWELL_S` in one place.

At most `maxReplicas` are wanted in sum. One more may start to relieve an on-demand one, and a silent
node's replica may hold its slot beyond that for `fleet.STALE_HOLD_S`, because its node may return.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from spotinference.core import bridge, buying, outlook, spares, spending
from spotinference.core.fleet import KINDS, STALE_HOLD_S, Fleet, Place, Replica, Standing
from spotinference.core.markets import HOUR_S
from spotinference.core.observed import Market
from spotinference.core.outlook import Outlook, newly_leaving
from spotinference.core.plan import Doom, DoomReason, Pardon
from spotinference.core.spares import Spares

PROBE_DWELL_S = 120.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What placement has to keep to."""

    wanted: int
    now: datetime
    drain_s: float
    burst: bool
    """on-demand pools may be used while no spot market takes a launch"""
    exclusive: bool
    """one replica per zone: its volume can be mounted by one node only"""
    open_zones: frozenset[str] | None
    """zones whose cache is complete; None: any"""
    limit: int
    """never more replicas than this, but for `bridge.SURGE`"""
    cold_start_s: float = 300.0
    base: int = 0
    """so many replicas stand on on-demand pools in any case"""
    overprovision: int = 0
    """at most so many spot replicas more, each only while it pays"""
    max_hourly_cost: int | None = None
    """micro-USD: no launch that takes the prices of all replicas above it"""


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


@dataclass(slots=True)
class _Draft:
    """The placement while it is being worked out."""

    terms: Terms
    places: tuple[Place, ...]
    counts: dict[Market, int]
    outlook: Outlook
    dooms: list[Doom] = field(default_factory=list)
    victims: set[str] = field(default_factory=set)
    timers: list[datetime] = field(default_factory=list)
    why: dict[Market, str] = field(default_factory=dict)
    refused: int = 0
    """wanted replicas that a spot market has refused, and that have yet to be placed again"""
    too_dear: list[Place] = field(default_factory=list)


def place(fleet: Fleet, terms: Terms) -> Placement:
    """The new numbers. Pure arithmetic on what stands; empty of writes when all is well."""
    draft = _Draft(
        terms=terms,
        places=fleet.places,
        counts={p.market: p.kept for p in fleet.places},
        outlook=outlook.of(fleet, terms.now),
    )
    _mark_leaving(draft, fleet)
    draft.refused = sum(
        not r.volume_elsewhere
        for p in fleet.places
        if p.pool.capacity_type == "spot"
        for r in p.having(Standing.REFUSED)
    )
    moving = bridge.exchange(
        fleet.places,
        draft.counts,
        wanted=terms.wanted,
        base=terms.base,
        limit=terms.limit,
        now=terms.now,
    )
    draft.timers += moving.look_again_at
    spare = _spares(draft)
    _shrink(draft, sum(draft.counts.values()) - terms.wanted - max(moving.room, spare.kept))
    unplaced = _grow(draft, terms.wanted - sum(draft.counts.values()))
    _relieve(draft, terms.wanted + moving.room - sum(draft.counts.values()))
    if spare.more is not None and moving.room == 0:
        _launch(draft, spare.more)
        draft.why[spare.more.market] = f"a spare on {_reason(draft, spare.more)}"
    for p in fleet.places:
        draft.counts[p.market] += p.held
    return Placement(
        counts=draft.counts,
        outlook=draft.outlook,
        dooms=tuple(draft.dooms),
        pardons=_pardons(draft),
        removals=_removals(draft, fleet),
        unplaced=unplaced,
        nowhere=not usable(fleet.places, burst=terms.burst, base=terms.base),
        look_again_at=tuple(draft.timers),
        why=_why(draft),
        too_dear=tuple(draft.too_dear),
        spares=spare.kept + (spare.more is not None and moving.room == 0),
    )


def _spares(draft: _Draft) -> Spares:
    terms = draft.terms
    most = min(terms.overprovision, terms.limit - terms.wanted)
    if most <= 0 or terms.wanted <= 0:
        return spares.NONE
    draft.timers.append(terms.now + timedelta(seconds=spares.LOOK_EVERY_S))
    spot = [p for p in draft.places if p.pool.capacity_type == "spot"]
    return spares.decide(
        draft.places,
        [p for p in _allowed(draft, spot) if _takes_launches(draft, p)],
        draft.counts,
        draft.outlook,
        wanted=terms.wanted,
        base=terms.base,
        most=most,
        cold_start_s=terms.cold_start_s,
    )


def usable(places: Iterable[Place], *, burst: bool, base: int = 0) -> list[Place]:
    """Where a replica may be added at all: on-demand beside spot only as a bridge, or as a base."""
    named = [p for p in places if not p.closed]
    sure = burst or base > 0 or all(p.pool.capacity_type != "spot" for p in named)
    return [p for p in named if p.open and (sure or p.pool.capacity_type != "on-demand")]


def avoided(place_: Place, view: Outlook) -> bool:
    """A market that refuses now, did so (or lost a node) a short while ago, or is about to."""
    if place_.having(Standing.REFUSED, Standing.SILENT) or any(r.hinted for r in place_.replicas):
        return True
    return view.paused(place_.market)


def _sure_places(draft: _Draft) -> list[Place]:
    return [p for p in draft.places if p.pool.capacity_type == "on-demand"]


def _other_places(draft: _Draft) -> list[Place]:
    return [p for p in draft.places if p.pool.capacity_type != "on-demand"]


def _mark_leaving(draft: _Draft, fleet: Fleet) -> None:
    """Out of routing at once: every replica whose node has a notice or is silent."""
    now = draft.terms.now
    for replica in fleet.every:
        node = replica.view.node
        if replica.standing is Standing.SILENT and newly_leaving(replica):
            until = now + timedelta(seconds=STALE_HOLD_S)
            draft.dooms.append(_doom(replica, until, DoomReason.NODE_LOST))
        elif replica.standing is Standing.LEAVING and newly_leaving(replica):
            notice = node.notice if node is not None else None
            until = notice.deadline if notice is not None else now
            draft.dooms.append(_doom(replica, until, DoomReason.NOTICE))
        if replica.standing in {Standing.SILENT, Standing.LEAVING}:
            marked = replica.view.doomed_until
            if node is not None and node.notice is not None:
                draft.timers.append(replica.drains_until or node.notice.deadline)
            elif marked is not None and marked > now:
                draft.timers.append(marked)


def _shrink(draft: _Draft, surplus: int) -> None:
    """Take `surplus` away: pods not made yet, then not ready, then idle; busy ones drain first."""
    for p in reversed(draft.places):
        while surplus > 0 and draft.counts[p.market] > 0 and p.missing > 0:
            cut = min(surplus, p.missing, draft.counts[p.market])
            draft.counts[p.market] -= cut
            surplus -= cut
            break
    index = {p.market: p.index for p in draft.places}
    sure = [r.view.uid for p in _sure_places(draft) for r in p.replicas if r.counts]
    dear = set(sure[draft.terms.base :])
    candidates = [r for p in draft.places for r in p.replicas if r.counts]
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
    candidates.sort(key=lambda r: r not in relieved)
    for replica in candidates:
        if surplus <= 0:
            break
        if draft.counts[replica.view.market] <= 0:
            continue
        surplus -= 1
        draft.victims.add(replica.view.uid)
        _dismiss(draft, replica)


def _dismiss(draft: _Draft, replica: Replica) -> None:
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


def _grow(draft: _Draft, need: int) -> int:
    """Find places for `need` replicas; returns how many found none."""
    waiting = _refused_by_market(draft)
    for left in range(need, 0, -1):
        best = _best_open(draft)
        if best is None:
            draft.too_dear = _too_dear(draft)
            best = _stay(draft, waiting) or _next_probe(draft)
        if best is None:
            return left
        _launch(draft, best)
    return 0


def _launch(draft: _Draft, place_: Place) -> None:
    """One more there. Of a market that is tried again, CapacityAvailable says so, once."""
    if draft.outlook.refused_at(place_.market) is None:
        draft.why[place_.market] = _reason(draft, place_)
    draft.counts[place_.market] += 1


def _relieve(draft: _Draft, room: int) -> None:
    """Start up to `room` replicas where those that stand are to go: nobody waits for them.

    So they are what tries the markets that refused; the one that did so longest ago comes first.
    """
    fills = _sure_count(draft) < draft.terms.base
    kind = _sure_places(draft) if fills else _other_places(draft)
    for _ in range(room):
        best = _most_promising(draft, _allowed(draft, kind))
        if best is None:
            return
        _launch(draft, best)


def _most_promising(draft: _Draft, places: Sequence[Place]) -> Place | None:
    refused_at = draft.outlook.refused_at
    open_ = [p for p in places if _takes_launches(draft, p)]
    best = _best(draft, [p for p in open_ if refused_at(p.market) is None])
    if best is not None:
        return best
    again = [(at, p.index, p) for p in open_ if (at := refused_at(p.market))]
    return min((x for x in again if not _probed(draft, x[2])), default=(None, 0, None))[2]


def _probed(draft: _Draft, place_: Place) -> bool:
    """A launch waits there now; it will show whether the market still refuses."""
    standing = sum(r.counts and r.view.node is not None for r in place_.replicas)
    return draft.counts[place_.market] > standing


def _reason(draft: _Draft, place_: Place) -> str:
    """Why this market, as it was chosen: true when it is said, so it changes with nothing else."""
    kind = place_.pool.capacity_type
    if kind == "reserved":
        return "reserved, it is paid for in any case"
    if kind == "on-demand":
        if _sure_count(draft) < draft.terms.base:
            return "on-demand, for placement.onDemand.base"
        return "on-demand, as a bridge until spot stands"
    price = place_.pool.price
    cost = "" if price is None else f" at ${price.micro_usd_per_hour / 1e6:g} per hour"
    known = draft.outlook.beliefs.markets.get(place_.market)
    if known is None:
        return f"spot{cost}, not tried before"
    calm_h = known.calm_s(draft.terms.now.timestamp()) / HOUR_S
    return f"spot{cost}, calm for {calm_h:.1f} h"


def _why(draft: _Draft) -> str:
    """Only of what changes: a launch that is asked for already was explained then."""
    before = {p.market: p.spec_replicas for p in draft.places}
    return "; ".join(
        f"{market}: {why}"
        for market, why in draft.why.items()
        if draft.counts[market] > before[market]
    )


def _refused_by_market(draft: _Draft) -> dict[Market, list[Replica]]:
    return {p.market: list(p.having(Standing.REFUSED)) for p in draft.places}


def _allowed(draft: _Draft, places: Iterable[Place]) -> list[Place]:
    """Those that could take one more, whether or not they were refused."""
    most = draft.terms.max_hourly_cost
    return [
        p for p in _fit(draft, places) if spending.affordable(p, draft.counts, draft.places, most)
    ]


def _too_dear(draft: _Draft) -> list[Place]:
    """Those that only `max_hourly_cost` keeps from taking one more."""
    allowed = _allowed(draft, draft.places)
    fit = _fit(draft, draft.places)
    return [p for p in fit if _takes_launches(draft, p) and p not in allowed]


def _fit(draft: _Draft, places: Iterable[Place]) -> list[Place]:
    """Where there is room for one more, whatever it costs."""
    terms = draft.terms
    used: dict[str, int] = {}
    for p in draft.places:
        zone = p.market.zone
        used[zone] = used.get(zone, 0) + draft.counts[p.market] + p.silent
    return [
        p
        for p in usable(places, burst=terms.burst, base=terms.base - _sure_count(draft))
        if (terms.open_zones is None or p.market.zone in terms.open_zones)
        and not (terms.exclusive and used[p.market.zone] > 0)
    ]


def _best_open(draft: _Draft) -> Place | None:
    """The market to launch in: reserved, then spot, then on-demand; the best score of its kind."""
    allowed = [p for p in _allowed(draft, draft.places) if _takes_launches(draft, p)]
    sure = [p for p in allowed if p.pool.capacity_type == "on-demand"]
    if sure and _sure_count(draft) < draft.terms.base:
        return _best(draft, sure)
    if sure:
        # Nobody waits again for what has just refused: that is tried beside the bridge (`_relieve`).
        bridged = draft.refused > 0
        draft.refused -= bridged
        allowed = [
            p
            for p in allowed
            if p.pool.capacity_type != "spot" or not (bridged or draft.outlook.refused_at(p.market))
        ]
    first = min((KINDS.index(p.pool.capacity_type) for p in allowed), default=0)
    return _best(draft, [p for p in allowed if p.pool.capacity_type == KINDS[first]])


def _takes_launches(draft: _Draft, place_: Place) -> bool:
    return not avoided(place_, draft.outlook) and not place_.having(Standing.LEAVING)


def _best(draft: _Draft, places: Sequence[Place]) -> Place | None:
    """Cheap, calm, and apart from the others; the tier's order where that says nothing."""
    prices = outlook.prices(tuple(places))
    unit = min(prices.values(), default=1.0)
    danger = outlook.risk(draft.outlook, draft.terms.wanted, draft.terms.cold_start_s)
    standing = {p.market: n for p in draft.places if (n := draft.counts[p.market])}

    def order(p: Place) -> tuple[float, int]:
        offer = buying.Offer(p.market, prices[p.market])
        return round(buying.launch_score(offer, standing, danger, unit), 6), p.index

    return min(places, key=order, default=None)


def _sure_count(draft: _Draft) -> int:
    return sum(draft.counts[p.market] for p in draft.places if p.pool.capacity_type == "on-demand")


def _stay(draft: _Draft, waiting: dict[Market, list[Replica]]) -> Place | None:
    """A refused replica stays where it waits until its dwell is over."""
    dwell = timedelta(seconds=PROBE_DWELL_S)
    for p in _allowed(draft, draft.places):
        queue = waiting[p.market]
        if not queue:
            continue
        since = queue[0].view.unschedulable_since
        assert since is not None
        due = since + max(dwell, timedelta(seconds=p.refusal_s))
        if draft.terms.now < due:
            queue.pop(0)
            draft.timers.append(due)
            return p
    return None


def _next_probe(draft: _Draft) -> Place | None:
    """No market takes launches: try the one that refused longest ago."""
    terms = draft.terms
    allowed = _allowed(draft, draft.places)
    oldest = terms.now - timedelta(days=365)
    return min(
        allowed,
        key=lambda p: (
            draft.counts[p.market] + p.held,
            bool(p.having(Standing.REFUSED)) and len(allowed) > 1,
            draft.outlook.refused_at(p.market) or oldest,
            p.index,
        ),
        default=None,
    )


def _pardons(draft: _Draft) -> tuple[Pardon, ...]:
    """Marks whose cause is gone: the node came back, or the load did."""
    return tuple(
        Pardon(pod=r.view.name, uid=r.view.uid)
        for p in draft.places
        for r in p.replicas
        if r.draining
        and r.view.uid not in draft.victims
        and draft.counts[p.market] >= len(p.active)
    )


def _removals(draft: _Draft, fleet: Fleet) -> tuple[Replica, ...]:
    """Lost pods, and leaving ones that hold a slot which their replacement needs."""
    removals = [r for r in fleet.every if r.standing is Standing.LOST]
    for p in draft.places:
        leaving = [r for r in p.having(Standing.LEAVING) if r.drains_until is None]
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
