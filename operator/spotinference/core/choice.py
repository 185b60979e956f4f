"""Where the next replica goes: what `buying.launch_score` says of each market, its price, how calm it
has been, and what stands there already.

A market that refused a launch, or took a node away, is avoided for a while (`outlook`). A replica that
spot refused is bridged by on-demand at once, and from then on spot is tried beside the bridge, where
nobody waits for it (`bridge`). Without a bridge, when every market refuses, it moves on to the market that
refused longest ago, after at least `PROBE_DWELL_S` in one place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from spotinference.api.tier_status import LossesStatus
from spotinference.core import buying, outlook, spending
from spotinference.core.fleet import KINDS, Place, Replica, Standing
from spotinference.core.markets import HOUR_S, LONGEST_FAILED_S
from spotinference.core.observed import Market
from spotinference.core.outlook import Outlook
from spotinference.core.plan import Doom
from spotinference.core.regret import Regret

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
    regret: Regret | None = None
    """what staying has cost too much, or the move under way"""
    losses: LossesStatus | None = None
    """how often losses went together"""


@dataclass(slots=True)
class Draft:
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
    occupied: frozenset[str] = frozenset()
    """zones in which a replica stands that goes because the tier does not name its market any more"""
    dropped: dict[Market, int] = field(default_factory=dict)
    """the counts of those markets; `places` has none of them"""
    dropped_cost: int = 0
    """micro-USD per hour of what stands there, as far as its price is known"""


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


def sure_places(draft: Draft) -> list[Place]:
    return [p for p in draft.places if p.pool.capacity_type == "on-demand"]


def other_places(draft: Draft) -> list[Place]:
    return [p for p in draft.places if p.pool.capacity_type != "on-demand"]


def sure_count(draft: Draft) -> int:
    return sum(draft.counts[p.market] for p in draft.places if p.pool.capacity_type == "on-demand")


def takes_launches(draft: Draft, place_: Place) -> bool:
    return not avoided(place_, draft.outlook) and not place_.having(Standing.LEAVING)


def able(draft: Draft, places: Iterable[Place]) -> list[Place]:
    """Those that could take one more, whether or not they were refused."""
    most = draft.terms.max_hourly_cost
    most = None if most is None else most - draft.dropped_cost
    return [
        p for p in _fit(draft, places) if spending.affordable(p, draft.counts, draft.places, most)
    ]


def too_dear(draft: Draft) -> list[Place]:
    """Those that only `max_hourly_cost` keeps from taking one more."""
    allowed = able(draft, draft.places)
    fit = _fit(draft, draft.places)
    return [p for p in fit if takes_launches(draft, p) and p not in allowed]


def _fit(draft: Draft, places: Iterable[Place]) -> list[Place]:
    """Where there is room for one more, whatever it costs."""
    terms = draft.terms
    used: dict[str, int] = {}
    for p in draft.places:
        zone = p.market.zone
        used[zone] = used.get(zone, 0) + draft.counts[p.market] + p.silent
    return [
        p
        for p in usable(places, burst=terms.burst, base=terms.base - sure_count(draft))
        if (terms.open_zones is None or p.market.zone in terms.open_zones)
        and not (terms.exclusive and (used[p.market.zone] > 0 or p.market.zone in draft.occupied))
    ]


def best_open(draft: Draft) -> Place | None:
    """The market to launch in: reserved, then spot, then on-demand; the best score of its kind."""
    allowed = [p for p in able(draft, draft.places) if takes_launches(draft, p)]
    sure = [p for p in allowed if p.pool.capacity_type == "on-demand"]
    if sure and sure_count(draft) < draft.terms.base:
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
    kind = [p for p in allowed if p.pool.capacity_type == KINDS[first]]
    kind = [p for p in kind if not _volume_leaves(draft, p)] or kind
    return _best(draft, [p for p in kind if not failed_lately(draft, p)] or kind)


def _volume_leaves(draft: Draft, place_: Place) -> bool:
    """The zone's volume is on a node that goes, and stays there until its replica has drained."""
    return draft.terms.exclusive and any(
        r.drains_until is not None
        for p in draft.places
        if p.market.zone == place_.market.zone
        for r in p.replicas
    )


def most_promising(draft: Draft, places: Sequence[Place]) -> Place | None:
    refused_at = draft.outlook.refused_at
    open_ = [p for p in places if takes_launches(draft, p)]
    best = _best(draft, [p for p in open_ if refused_at(p.market) is None])
    if best is not None:
        return best
    again = [(at, p.index, p) for p in open_ if (at := refused_at(p.market))]
    return min((x for x in again if not _probed(draft, x[2])), default=(None, 0, None))[2]


def _probed(draft: Draft, place_: Place) -> bool:
    """A launch waits there now; it will show whether the market still refuses."""
    return draft.counts[place_.market] > place_.on_nodes


def _best(draft: Draft, places: Sequence[Place]) -> Place | None:
    """Cheap, calm, and apart from the others; the tier's order where that says nothing."""
    prices = outlook.prices(tuple(places))
    unit = min(prices.values(), default=1.0)
    danger = outlook.risk(draft.outlook, draft.terms.wanted, draft.terms.cold_start_s)
    standing = {p.market: n for p in draft.places if (n := draft.counts[p.market])}

    def order(p: Place) -> tuple[float, int]:
        offer = buying.Offer(p.market, prices[p.market])
        return round(buying.launch_score(offer, standing, danger, unit), 6), p.index

    return min(places, key=order, default=None)


def stay(draft: Draft, waiting: dict[Market, list[Replica]]) -> Place | None:
    """A refused replica stays where it waits until its dwell is over."""
    dwell = timedelta(seconds=PROBE_DWELL_S)
    for p in able(draft, draft.places):
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


def next_probe(draft: Draft) -> Place | None:
    """No market takes launches: try the one that refused longest ago.

    One whose launches were never ready only as the tier's only chance: its nodes would be paid for.
    """
    terms = draft.terms
    able_ = able(draft, draft.places)
    alone = not any(draft.counts.values())
    allowed = [p for p in able_ if alone or not _failing(draft, p)]
    opens = (draft.outlook.opens_at(p.market) for p in able_ if p not in allowed)
    draft.timers += [at for at in opens if at is not None]
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


def failed_lately(draft: Draft, place_: Place) -> bool:
    """Its last launch was never ready: for as long as the longest pause, whatever its own one is."""
    at = draft.outlook.refused_at(place_.market) if draft.outlook.failed(place_.market) else None
    return at is not None and draft.terms.now - at < timedelta(seconds=LONGEST_FAILED_S)


def _failing(draft: Draft, place_: Place) -> bool:
    """Its last launch was never ready, and the pause for that goes on."""
    return draft.outlook.failed(place_.market) > 0 and draft.outlook.paused(place_.market)


def reason(draft: Draft, place_: Place) -> str:
    """Why this market, as it was chosen: true when it is said, so it changes with nothing else."""
    kind = place_.pool.capacity_type
    if kind == "reserved":
        return "reserved, it is paid for in any case"
    if kind == "on-demand":
        if sure_count(draft) < draft.terms.base:
            return "on-demand, for placement.onDemand.base"
        return "on-demand, as a bridge until spot stands"
    price = place_.pool.price
    cost = "" if price is None else f" at {spending.dollars(price.micro_usd_per_hour)} per hour"
    known = draft.outlook.beliefs.markets.get(place_.market)
    if known is None:
        return f"spot{cost}, not tried before"
    calm_h = known.calm_s(draft.terms.now.timestamp()) / HOUR_S
    return f"spot{cost}, calm for {calm_h:.1f} h"
