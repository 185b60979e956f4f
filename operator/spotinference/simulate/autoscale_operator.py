"""The operator's whole autoscaler in the autoscale simulator: targets, steps and hysteresis, and what
the learned load adds to them. `ours` is the sizing alone.

Built from the tier a user would write for the service that is simulated: `targetRunning` is what a full
replica runs, everything else its default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from spotinference.api import times
from spotinference.api.pool import PoolSpec
from spotinference.api.tier import TierSpec
from spotinference.api.tier_status import DecisionStatus, TierStatus
from spotinference.core import autoscale, sizing
from spotinference.core.fleet import Fleet, Place, Replica, Standing
from spotinference.core.observed import (
    Learned,
    Market,
    Observed,
    OperatorSettings,
    ReplicaView,
    TierRef,
)
from spotinference.simulate.autoscale import Setup, Signals
from spotinference.simulate.autoscale_ours import reading_of

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
MARKET = Market("spot", "zone")
MOST = 1000
"""What a tier may ask for at most."""


@dataclass(slots=True)
class Operator:
    spec: TierSpec
    status: TierStatus
    every_s: float = 10.0
    memory: sizing.Memory = field(default_factory=sizing.Memory)

    def decide(self, signals: Signals) -> int:
        now = EPOCH + timedelta(seconds=signals.at_s)
        if self.status.last_decision is None:
            self._decided(now, signals.current)
        reading = reading_of(signals, at_s=now.timestamp())
        rules = autoscale.sizing_rules(self.spec, self.status)
        self.memory = sizing.learn(self.memory, reading, rules)
        waiting = math.ceil(signals.waiting)
        load = autoscale.Load(
            parked=0 if signals.ready else waiting,
            running=round(signals.running),
            waiting=waiting if signals.ready else 0,
            unknown=0,
            known=signals.ready,
            active_at=None,
        )
        seen = self._observed(now, Learned(self.memory, reading))
        most = self.spec.scaling.max_replicas
        count = autoscale.count(seen, _fleet(signals), load, most)
        self.status = self.status.model_copy(update={"scaling": count.scaling})
        self._decided(now, count.desired)
        return count.desired

    def _decided(self, now: datetime, desired: int) -> None:
        decision = DecisionStatus(at=times.to_text(now), desired=desired, reason="")
        self.status = self.status.model_copy(update={"last_decision": decision})

    def _observed(self, now: datetime, learned: Learned) -> Observed:
        return Observed(
            now=now,
            ref=TierRef("default", "simulated"),
            uid="simulated",
            generation=1,
            deleting=False,
            spec=self.spec,
            status=self.status,
            pools={},
            replicas=(),
            caches=(),
            demands=(),
            children={},
            settings=OperatorSettings(image=""),
            learned=learned,
        )


def operator(setup: Setup) -> Operator:
    """Of the tier that this setup describes."""
    scaling = {
        "minReplicas": setup.least,
        "maxReplicas": min(setup.most or MOST, MOST),
        "targetRunning": max(1, round(setup.service.concurrency)),
    }
    body = {
        "model": {"source": "hf://simulated/model"},
        "placement": {"pools": [MARKET.pool]},
        "scaling": scaling,
    }
    return Operator(
        TierSpec.model_validate(body), TierStatus(last_wake_seconds=round(setup.cold_start_s))
    )


def _fleet(signals: Signals) -> Fleet:
    """Replicas that are all alike: only their number and standing matter to the count."""
    ready, starting = (_replica(ready=True),), (_replica(ready=False),)
    place = Place(
        market=MARKET,
        pool=PoolSpec(capacity_type="spot", zones=[MARKET.zone]),
        index=0,
        deployment=None,
        replicas=signals.ready * ready + signals.starting * starting,
    )
    return Fleet((place,))


def _replica(*, ready: bool) -> Replica:
    view = ReplicaView(
        name="replica",
        uid="replica",
        market=MARKET,
        created_at=EPOCH,
        node=None,
        ready=ready,
        running=True,
        deleting=False,
    )
    return Replica(view, Standing.READY if ready else Standing.STARTING)
