"""What is believed of each market, from nothing but what launches and replicas there have shown.

The longer a market has gone without taking anything back, the longer it will: in the public traces
of spot GPUs the rate of reclaims falls as 0.6 / age from minutes to days (docs/policies.md). So a
belief is little more than a moment: since when the market has been calm. It changes only when
something happens there, never by time passing, and is therefore cheap to keep in a status.
Called by the operator's placement and by the simulator; times are seconds on any one clock.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from spotinference.core.observed import Market

SHAPE = 0.6
"""Reclaims to expect while the calm doubles from far on: the k of k / (age + YOUNG_S)."""
YOUNG_S = 720.0
"""Calm that every market is credited with: bounds the rate right after a reclaim at 3 per hour."""
FRESH_S = 540.0
"""Calm of a market that takes launches again after it refused them."""
UNKNOWN_S = 9000.0
"""Calm that a market never seen before is credited with: what one finds at a random moment."""
UNWATCHED = 0.5
"""Share of the time without a replica there that counts as calm, if it takes a launch then."""
NEIGHBOUR = 0.5
"""What is left of a market's calm when its region takes something back elsewhere."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 900.0
"""How long a market that refused is not tried: doubled each time."""
FIRST_FAILED_S, LONGEST_FAILED_S = 300.0, 21_600.0
"""The same where a launch found a node and never became ready: that was paid for."""
ONE_EVENT_S = 30.0
"""Reclaims within this are one event, seen piece by piece: notices come a few seconds apart."""
HOUR_S = 3600.0

_ZONE_OF_REGION = re.compile(r"(?<=[0-9])-?[a-z]$")


@dataclass(frozen=True, slots=True)
class Share:
    """How often something went along, out of the chances it had; begins with a prior."""

    hits: float
    chances: float

    @property
    def mean(self) -> float:
        return self.hits / self.chances

    def seen(self, hits: int, chances: int) -> Share:
        """Never more hits than chances: a hit may be seen after the chance it belongs to."""
        chances_now = self.chances + chances
        return Share(min(chances_now, self.hits + hits), chances_now)


@dataclass(frozen=True, slots=True)
class Belief:
    """One market."""

    calm_since_s: float
    watched_until_s: float | None = None
    """when the last replica there was gone, or a launch was refused; None: one stands there"""
    backoff_s: float = 0.0
    """0: takes launches, as far as is known"""
    closed_until_s: float = 0.0
    failed: int = 0
    """launches in a row that found a node and never became ready"""
    reclaimed_s: float | None = None
    """when it last took a replica back"""

    def calm_s(self, now_s: float) -> float:
        """For how long it has been seen without a reclaim."""
        until = now_s if self.watched_until_s is None else self.watched_until_s
        return max(0.0, until - self.calm_since_s)

    def reclaims_per_h(self, now_s: float, horizon_s: float) -> float:
        """The mean rate at which it will take back over the horizon, if it stands at its start."""
        grown = math.log1p(horizon_s / (YOUNG_S + self.calm_s(now_s)))
        return SHAPE * grown / (horizon_s / HOUR_S)


WHOLE, JOINT = Share(1.4, 2.0), Share(1.0, 4.0)
"""What is believed of losses that go together before any was seen."""


@dataclass(frozen=True, slots=True)
class Beliefs:
    """All markets that were ever tried, and how losses go together."""

    markets: Mapping[Market, Belief]
    whole: Share = WHOLE
    """reclaims in a market that took every replica there, of those where several stood"""
    joint: Share = JOINT
    """other markets of the region that took back in the same moment, of those with a replica"""

    def of(self, market: Market, now_s: float) -> Belief:
        return self.markets.get(market) or Belief(now_s - UNKNOWN_S, now_s)

    def open(self, market: Market, now_s: float) -> bool:
        """Whether to try a launch there now."""
        known = self.markets.get(market)
        return known is None or known.closed_until_s <= now_s


NOTHING_KNOWN = Beliefs({})


@dataclass(frozen=True, slots=True)
class Seen:
    """What became visible since the last look, in replicas per market."""

    now_s: float
    standing: Mapping[Market, int]
    """replicas there now, starting or ready; no zeros"""
    reclaimed: Mapping[Market, int]
    refused: frozenset[Market] = frozenset()
    """a launch found no capacity"""
    accepted: frozenset[Market] = frozenset()
    """a launch found a node"""
    failed: frozenset[Market] = frozenset()
    """a launch found a node and was given up before it was ready"""
    proven: frozenset[Market] = frozenset()
    """a launch became ready where the last one had failed"""
    sure: frozenset[Market] = frozenset()
    """on-demand and reserved: they say nothing of how spot goes together"""


def region(zone: str) -> str:
    """The failure domain above a zone: `us-east-1a` and `europe-west4-b` without their letter."""
    return _ZONE_OF_REGION.sub("", zone)


def learn(beliefs: Beliefs, seen: Seen) -> Beliefs:
    """The beliefs after this look; the very same object when nothing happened."""
    touched: dict[Market, Belief] = {}
    for market in (*seen.standing, *seen.reclaimed, *sorted(seen.refused), *sorted(seen.failed)):
        if market not in touched:
            touched[market] = _updated(beliefs.of(market, seen.now_s), market, seen)
    for market, belief in beliefs.markets.items():
        if market not in touched and belief.watched_until_s is None:
            touched[market] = replace(belief, watched_until_s=seen.now_s)
    _unsettle(touched, beliefs, seen)
    changed = {m: b for m, b in touched.items() if beliefs.markets.get(m) != b}
    if not changed and not seen.reclaimed:
        return beliefs
    whole, joint = _together(beliefs, seen)
    return Beliefs({**beliefs.markets, **changed}, whole, joint)


def _updated(old: Belief, market: Market, seen: Seen) -> Belief:
    now_s, stands = seen.now_s, market in seen.standing
    belief = old
    if old.watched_until_s is not None and stands:
        gap_s = now_s - old.watched_until_s
        since_s = old.calm_since_s + (1 - UNWATCHED) * gap_s
        belief = replace(belief, calm_since_s=since_s, watched_until_s=None)
    if market in seen.accepted or market in seen.proven:
        belief = replace(belief, backoff_s=0.0, closed_until_s=0.0, failed=0)
    refused = market in seen.reclaimed or market in seen.refused
    if market in seen.failed:
        belief = _refused(replace(belief, failed=belief.failed + 1), now_s)
    elif refused:
        belief = _refused(belief, now_s)
    if market in seen.reclaimed:
        belief = replace(belief, reclaimed_s=now_s)
    if not stands and not refused:
        # A launch that failed says nothing about reclaims.
        until_s = now_s if belief.watched_until_s is None else belief.watched_until_s
        belief = replace(belief, watched_until_s=until_s)
    elif not stands:
        # Whatever comes next there begins a new life.
        belief = replace(belief, calm_since_s=now_s - FRESH_S, watched_until_s=now_s)
    elif market in seen.reclaimed:
        belief = replace(belief, calm_since_s=now_s)
    return belief


def _refused(belief: Belief, now_s: float) -> Belief:
    """Avoided for twice as long as the last time, until a launch is accepted (or proven)."""
    first_s, longest_s = FIRST_PAUSE_S, LONGEST_PAUSE_S
    if belief.failed:
        first_s, longest_s = FIRST_FAILED_S, LONGEST_FAILED_S
    pause_s = min(longest_s, max(first_s, 2 * belief.backoff_s))
    return replace(belief, backoff_s=pause_s, closed_until_s=now_s + pause_s)


def _unsettle(touched: dict[Market, Belief], beliefs: Beliefs, seen: Seen) -> None:
    """A reclaim shortens the calm of its neighbours."""
    for hit in seen.reclaimed:
        for market in dict.fromkeys((*beliefs.markets, *touched)):
            if market not in seen.reclaimed and region(market.zone) == region(hit.zone):
                belief = touched.get(market) or beliefs.markets[market]
                calm_s = belief.calm_s(seen.now_s) * (1 - NEIGHBOUR)
                since_s = belief.calm_since_s + calm_s
                touched[market] = replace(belief, calm_since_s=since_s)


def _together(beliefs: Beliefs, seen: Seen) -> tuple[Share, Share]:
    """What this look says of losses that go together, and mends of the looks just before it."""
    whole, joint = beliefs.whole, beliefs.joint
    before = _just_lost(beliefs, seen)
    spot = {*seen.standing, *seen.reclaimed, *before} - seen.sure
    for market in spot & {*seen.reclaimed}:
        left = seen.standing.get(market, 0)
        if seen.reclaimed[market] + left > 1:
            whole = whole.seen(int(left == 0), 1)
        near = {m for m in spot - {market} if region(m.zone) == region(market.zone)}
        went = near & {*seen.reclaimed, *before}
        # To those lost before it, this one was a neighbour that stayed.
        joint = joint.seen(len(went) + len(near & before), len(near))
    for market in before & spot:
        if beliefs.markets[market].watched_until_s is None and market not in seen.standing:
            whole = whole.seen(1, 0)  # the rest of it went with the first
    return whole, joint


def _just_lost(beliefs: Beliefs, seen: Seen) -> set[Market]:
    """Markets that took something back in an earlier look at the same event."""
    return {
        m
        for m, b in beliefs.markets.items()
        if b.reclaimed_s is not None
        and seen.now_s - b.reclaimed_s < ONE_EVENT_S
        and m not in seen.reclaimed
    }
