"""Which demand still counts: a gateway's Lease, from the moment we saw it change.

Times written in Leases come from other clocks. So freshness is ours: a Lease counts for
`LEASE_DURATION_S` after its last change that we saw, by the monotonic clock. Only a Lease never
seen before is also judged by its own renewTime, with a wide margin, so that what a dead gateway
left behind long ago does not wake a GPU when the operator starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from spotinference.api import demand, times
from spotinference.api.kinds import LEASE, Json
from spotinference.clients.clock import Clock
from spotinference.controller.store import Store, is_demand
from spotinference.core.observed import TierRef

MAX_CLOCK_SKEW = timedelta(minutes=5)


@dataclass(slots=True)
class _Seen:
    version: str
    until: float


class DemandBook:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    def saw(self, lease: Json) -> None:
        """Notes a Lease as the watch shows it. Repetitions do not prolong it."""
        meta = lease["metadata"]
        uid, version = meta["uid"], meta["resourceVersion"]
        known = self._seen.get(uid)
        if known is not None and known.version == version:
            return
        until = self._clock.monotonic() + demand.LEASE_DURATION_S
        if known is None and self._long_dead(lease):
            until = 0.0
        self._seen[uid] = _Seen(version, until)

    def forget(self, lease: Json) -> None:
        self._seen.pop(lease["metadata"]["uid"], None)

    def fresh(self, ref: TierRef) -> tuple[tuple[demand.Demand, ...], float | None]:
        """The demands that count now, and after how many seconds the next of them ends."""
        now = self._clock.monotonic()
        demands: list[demand.Demand] = []
        ends_s: list[float] = []
        for lease in self._store.of_tier(LEASE, ref):
            if not is_demand(LEASE, lease) or lease["metadata"].get("deletionTimestamp"):
                continue
            self.saw(lease)
            until = self._seen[lease["metadata"]["uid"]].until
            parsed = demand.parse(lease)
            if until > now and parsed is not None:
                demands.append(parsed)
                ends_s.append(until - now)
        return tuple(demands), min(ends_s, default=None)

    def _long_dead(self, lease: Json) -> bool:
        try:
            renewed_at = times.parse(lease["spec"]["renewTime"])
        except (KeyError, TypeError, ValueError):
            return True
        lived = timedelta(seconds=demand.LEASE_DURATION_S)
        return self._clock.now() - renewed_at > lived + MAX_CLOCK_SKEW
