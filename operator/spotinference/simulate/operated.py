"""The operator's own decisions in a replay: `core.reconcile.resolve` and the status it leaves.

Everything a decision reads is made here from the virtual machines, as `controller/observe.py`
makes it from the API; what it asks for is carried out at once. Weights and caches are complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from spotinference.api import names
from spotinference.api.demand import Demand
from spotinference.api.kinds import DEPLOYMENT, Json
from spotinference.api.pool import PoolSpec
from spotinference.api.tier import TierSpec
from spotinference.api.tier_status import TierStatus
from spotinference.core import autoscale, sizing, status
from spotinference.core.fleet import Standing
from spotinference.core.observed import (
    CacheView,
    Learned,
    NodeHealth,
    NodeView,
    Notice,
    Observed,
    OperatorSettings,
    ReplicaView,
    Sample,
    TierRef,
)
from spotinference.core.reconcile import resolve
from spotinference.simulate.machines import Machines, Pod
from spotinference.simulate.traffic import Tally, Traffic

EPOCH = datetime(2026, 1, 5, tzinfo=UTC)
"""A Monday, so that a daily or weekly pattern begins at midnight."""
REF = TierRef("default", "replayed")
UID = "replayed"
SETTINGS = OperatorSettings(image="spotinference")
REVISION = "0" * 40
LEARN_EVERY_S = 10.0


@dataclass(slots=True)
class Operated:
    sleeps: ClassVar[bool] = True

    spec: TierSpec
    pools: Mapping[str, PoolSpec]
    name: str = "ours"
    status: TierStatus = field(default_factory=TierStatus)
    _resting: bool = False
    _memory: sizing.Memory = field(default_factory=sizing.Memory)
    _reading: sizing.Reading | None = None
    _before: Tally = field(default_factory=Tally)
    _busy_s: float = 0.0
    _up_s: float = 0.0
    _seen_at: float = 0.0
    _read_at: float = 0.0

    def act(self, now: float, machines: Machines, traffic: Traffic) -> None:
        self._learn(now, machines, traffic)
        if self._resting and not machines.pods and not traffic.waiting:
            return  # nothing to see, and no timer runs while a tier sleeps
        observed = self.observe(now, machines, traffic)
        decision = resolve(observed)
        where = decision.placement
        for doom in where.dooms:
            pod = machines.pods[doom.pod]
            pod.doomed_until, pod.doomed_reason = doom.until, doom.reason
            pod.cost = doom.deletion_cost
        for pardon in where.pardons:
            pod = machines.pods[pardon.pod]
            pod.doomed_until, pod.doomed_reason, pod.cost = None, None, 0
        machines.sizes = dict(where.counts)
        for removal in where.removals:
            at_once = removal.standing is Standing.LOST
            machines.delete(removal.view.name, at_once=at_once, now=now)
        self._resting = decision.count.desired == 0 and not any(machines.sizes.values())
        self.status = status.status_of(observed, decision)

    def _learn(self, now: float, machines: Machines, traffic: Traffic) -> None:
        """One reading, as often as the operator's own (`controller/learning.py`)."""
        passed_s, self._seen_at = now - self._seen_at, now
        ready = [p for p in machines.pods.values() if p.serves]
        target = self.spec.scaling.target_running
        self._busy_s += passed_s * sum(min(1.0, traffic.running(p.name) / target) for p in ready)
        self._up_s += passed_s * len(ready)
        if now - self._read_at < LEARN_EVERY_S:
            return
        tally, before = traffic.tally, self._before
        self._reading = sizing.Reading(
            at_s=_at(now).timestamp(),
            arrived=tally.requests - before.requests,
            finished=tally.finished - before.finished,
            tokens=tally.finished_tokens - before.finished_tokens,
            busy_s=self._busy_s,
            up_s=self._up_s,
            waiting=round(traffic.queued),
            running=round(sum(traffic.running(p.name) for p in ready)),
            ready=len(ready),
            starting=len(machines.pods) - len(ready),
        )
        rules = autoscale.sizing_rules(self.spec, self.status)
        self._memory = sizing.learn(self._memory, self._reading, rules)
        self._before, self._busy_s, self._up_s, self._read_at = replace(tally), 0.0, 0.0, now

    def observe(self, now: float, machines: Machines, traffic: Traffic) -> Observed:
        at = EPOCH + timedelta(seconds=now)
        return Observed(
            now=at,
            ref=REF,
            uid=UID,
            generation=1,
            deleting=False,
            spec=self.spec,
            status=self.status,
            pools=self.pools,
            replicas=self._replicas(at, machines, traffic),
            caches=self._caches(),
            demands=_demands(machines, traffic),
            children=_deployments(machines),
            settings=SETTINGS,
            learned=None if self._reading is None else Learned(self._memory, self._reading),
        )

    def _replicas(
        self, at: datetime, machines: Machines, traffic: Traffic
    ) -> tuple[ReplicaView, ...]:
        serving = [p for p in machines.pods.values() if p.serves]
        open_ = [p for p in serving if p.doomed_until is None]
        waiting = traffic.queued / len(open_) if open_ else 0.0
        return tuple(
            _view(pod, at, machines, traffic, waiting if pod.doomed_until is None else 0.0)
            for pod in machines.pods.values()
        )

    def _caches(self) -> tuple[CacheView, ...]:
        zones: tuple[str | None, ...] = (None,)
        if self.spec.cache.access_mode == "ReadWriteOnce":
            found = {z: None for n in self.spec.placement.pools for z in self.pools[n].zones}
            zones = tuple(found)
        return tuple(CacheView(z, bound=True, complete=True, revision=REVISION) for z in zones)


def _view(
    pod: Pod, at: datetime, machines: Machines, traffic: Traffic, waiting: float
) -> ReplicaView:
    sample = None
    if pod.serves:
        running = traffic.running(pod.name)
        active = at if running or waiting >= 1 else None
        sample = Sample(at, round(running), int(waiting), active_at=active)
    return ReplicaView(
        name=pod.name,
        uid=pod.name,
        market=pod.market,
        created_at=_at(pod.created_at),
        node=_node(pod, machines),
        ready=pod.serves,
        running=pod.bound_at is not None and not pod.lost,
        deleting=pod.ending_at is not None,
        loaded=pod.ready_at is not None,
        ready_at=None if pod.ready_at is None else _at(pod.ready_at),
        doomed_until=pod.doomed_until,
        doomed_reason=pod.doomed_reason,
        scheduled_at=None if pod.bound_at is None else _at(pod.bound_at),
        unschedulable_since=_at(pod.created_at) if pod.node is None else None,
        unschedulable_message="no node has room" if pod.node is None else "",
        sample=sample,
    )


def _node(pod: Pod, machines: Machines) -> NodeView | None:
    node = pod.node
    if node is None:
        return None
    if node.name not in machines.nodes:
        return NodeView(node.name, NodeHealth.GONE)
    notice = (
        None
        if node.gone_at is None
        else Notice(node=node.name, source="replayed", deadline=_at(node.gone_at))
    )
    return NodeView(node.name, NodeHealth.HEALTHY, notice)


def _demands(machines: Machines, traffic: Traffic) -> tuple[Demand, ...]:
    if any(p.serves and p.doomed_until is None for p in machines.pods.values()):
        return ()
    oldest, parked = traffic.oldest, traffic.queued
    if oldest is None or parked <= 0:
        return ()
    return (Demand("gateway", max(1, round(parked)), _at(oldest)),)


def _deployments(machines: Machines) -> dict[tuple[str, str], Json]:
    return {
        (DEPLOYMENT.kind, names.engine_deployment(REF.name, market.pool, market.zone)): {
            "metadata": {
                "name": names.engine_deployment(REF.name, market.pool, market.zone),
                "labels": {names.LABEL_POOL: market.pool, names.LABEL_ZONE: market.zone},
                "ownerReferences": [{"uid": UID}],
            },
            "spec": {"replicas": size},
        }
        for market, size in machines.sizes.items()
    }


def _at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)
