"""An in-memory cluster for one tier: Deployments, scheduler, kubelets and markets on a virtual
clock, with `decide` in its loop. Deterministic; 10,000 steps take seconds.

    world = World(spec(...), pools(...))
    world.demand(3)
    world.run(120)
    assert world.status.phase == "Ready"
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from spotinference.api import names, times
from spotinference.api.demand import Demand
from spotinference.api.kinds import DEPLOYMENT, JOB, POD, PVC, Json
from spotinference.api.pool import PoolSpec
from spotinference.api.tier import TierSpec, TierStatus
from spotinference.core.observed import (
    CacheView,
    Confidence,
    Market,
    NodeHealth,
    NodeView,
    Notice,
    Observed,
    OperatorSettings,
    ReplicaView,
    Sample,
    TierRef,
)
from spotinference.core.plan import Apply, Delete, Plan
from spotinference.core.reconcile import decide

EPOCH = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)
COMMIT = "c0ffee00" * 5


@dataclass
class Node:
    name: str
    market: Market
    up_at: datetime
    notice_deadline: datetime | None = None
    silent: bool = False
    hinted: bool = False
    """a rebalance hint stands on it"""
    empty_since: datetime | None = None


@dataclass
class Pod:
    name: str
    uid: str
    deployment: str
    market: Market
    template: str
    created_at: datetime
    node: str | None = None
    bound_at: datetime | None = None
    running_at: datetime | None = None
    ready_at: datetime | None = None
    deleting_until: datetime | None = None
    doomed_until: datetime | None = None
    doomed_reason: str | None = None
    cost: int = 0
    running: int = 0
    waiting: int = 0
    restarts: int = 0
    failure: str | None = None
    hangs: bool = False
    """neither /health nor /metrics answers; what runs goes on"""
    loaded: bool = False
    """its startup probe has passed"""
    ended: bool = False
    """phase Failed: its ReplicaSet makes another one, and leaves the object where it is"""


@dataclass(frozen=True)
class Write:
    """One mutating request."""

    at: datetime
    what: str


@dataclass
class World:
    spec: TierSpec
    pools: dict[str, PoolSpec]
    capacity: dict[Market, int] = field(default_factory=dict)
    """nodes that a market can have; absent: as many as asked for"""
    boot_s: float = 20
    load_s: float = 30
    fetch_s: float = 10
    now: datetime = EPOCH
    status: TierStatus = field(default_factory=TierStatus)
    generation: int = 1
    uid: str = "tier-1"
    name: str = "chat"
    children: dict[tuple[str, str], Json] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    parked: int = 0
    streams: int = 0
    """requests that the replicas have to carry, spread evenly; what does not fit waits"""
    per_replica: int = 1000
    metrics: bool = True
    pull_failure: str | None = None
    """the kubelet's own words when the image cannot be pulled"""
    stuck_volume: bool = False
    """bound pods stay in ContainerCreating, in which a kubelet says nothing"""
    crash: str | None = None
    """the engine's own words when every start fails"""
    hub_failure: str | None = None
    volume_elsewhere: set[Market] = field(default_factory=set)
    """markets whose nodes cannot mount the volume of their pods"""
    slow_zone: str | None = None
    """where a cache job does not come to its end"""
    commit: str = COMMIT
    writes: list[Write] = field(default_factory=list)
    plans: list[tuple[datetime, Plan]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    parked_since: datetime = EPOCH
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    # --- what a test does ------------------------------------------------------------------------

    def run(self, seconds: float, step_s: float = 1) -> None:
        """Let time pass; the operator looks once per step."""
        for _ in range(round(seconds / step_s)):
            self.step(step_s)

    def step(self, step_s: float = 1) -> Plan:
        self.now += timedelta(seconds=step_s)
        self._cluster()
        plan = decide(self.observe())
        self.carry_out(plan)
        return plan

    def settle(self, limit_s: float = 1200) -> None:
        """Until nothing has been written for 30 s."""
        quiet = 0
        for _ in range(round(limit_s)):
            before = len(self.writes)
            self.step()
            quiet = quiet + 1 if len(self.writes) == before else 0
            if quiet >= 30:
                return
        raise AssertionError(f"no fixpoint in {limit_s} s; last writes: {self.writes[-8:]}")

    def demand(self, parked: int) -> None:
        if self.parked == 0:
            self.parked_since = self.now
        self.parked = parked

    def edit(self, **changes: object) -> None:
        """A new spec, as by kubectl apply."""
        self.spec = TierSpec.model_validate(
            {**self.spec.model_dump(by_alias=True, exclude_none=True), **changes}
        )
        self.generation += 1

    def notice(self, node: str, seconds: float) -> None:
        self.nodes[node].notice_deadline = self.now + timedelta(seconds=seconds)

    def reclaim(self, node: str) -> None:
        """The node object and its processes vanish."""
        del self.nodes[node]

    def hang(self, name: str) -> None:
        """The engine is too busy to answer a probe or a scrape."""
        pod = self.pods[name]
        pod.hangs, pod.ready_at = True, None

    def evict(
        self, name: str, words: str = "Evicted: The node was low on resource: memory"
    ) -> None:
        """The kubelet ends a pod: phase Failed, the object stays."""
        pod = self.pods[name]
        pod.ended, pod.failure, pod.ready_at, pod.running_at = True, words, None, None

    def by_hand(self, kind: str, name: str) -> Json:
        """A child to edit in place, as another writer does: it has a new version then."""
        body = self.children[kind, name]
        body["metadata"]["resourceVersion"] = str(next(self._ids))
        return body

    def node_of(self, market: str) -> str:
        return next(n.name for n in self.nodes.values() if str(n.market) == market)

    # --- what a test looks at --------------------------------------------------------------------

    @property
    def replicas(self) -> dict[str, int]:
        """Market to Deployment size, where it is above zero."""
        return {
            str(market): body["spec"]["replicas"]
            for market, body in sorted(self._deployments().items())
            if body["spec"]["replicas"]
        }

    @property
    def total(self) -> int:
        return sum(self.replicas.values())

    @property
    def ready(self) -> list[Pod]:
        return [p for p in self.pods.values() if p.ready_at is not None and not p.deleting_until]

    def condition(self, kind: str) -> tuple[str, str]:
        found = next(c for c in self.status.conditions if c.type == kind)
        return found.status, found.reason

    def message(self, kind: str) -> str:
        return next(c for c in self.status.conditions if c.type == kind).message

    # --- observe ---------------------------------------------------------------------------------

    def observe(self) -> Observed:
        demands: tuple[Demand, ...] = ()
        if self.parked:
            demands = (Demand("gateway-0", self.parked, self.parked_since),)
        return Observed(
            now=self.now,
            ref=TierRef("default", self.name),
            uid=self.uid,
            generation=self.generation,
            deleting=False,
            spec=self.spec,
            status=self.status,
            pools={n: p for n, p in self.pools.items() if n in self.spec.placement.pools},
            replicas=tuple(self._view(p) for p in self.pods.values()),
            caches=tuple(self._caches()),
            demands=demands,
            children=dict(self.children),  # `decide` changes nothing
            settings=OperatorSettings(image="ghcr.io/spotinference/spotinference:test"),
        )

    def _view(self, pod: Pod) -> ReplicaView:
        node = None
        if pod.node is not None:
            found = self.nodes.get(pod.node)
            health = NodeHealth.GONE
            notice = hint = None
            if found is not None:
                health = NodeHealth.STALE if found.silent else NodeHealth.HEALTHY
                if found.notice_deadline is not None:
                    notice = Notice(pod.node, "taint test", found.notice_deadline)
                if found.hinted:
                    later = self.now + timedelta(minutes=30)
                    hint = Notice(pod.node, "event test", later, Confidence.WEAK)
            node = NodeView(pod.node, health, notice, hint)
        refused = pod.node is None
        serving = pod.ready_at is not None
        sample = Sample(self.now, pod.running, pod.waiting) if serving and self.metrics else None
        return ReplicaView(
            name=pod.name,
            uid=pod.uid,
            market=pod.market,
            created_at=pod.created_at,
            node=node,
            ready=serving,
            running=pod.running_at is not None,
            deleting=pod.deleting_until is not None,
            ended=pod.ended,
            loaded=pod.loaded,
            ready_at=pod.ready_at,
            scheduled_at=pod.bound_at,
            doomed_until=pod.doomed_until,
            doomed_reason=pod.doomed_reason,
            unschedulable_since=pod.created_at if refused else None,
            unschedulable_message=self._scheduler_says(pod) if refused else "",
            failure=pod.failure,
            restarts=pod.restarts,
            revision=pod.template,
            sample=sample,
        )

    def _scheduler_says(self, pod: Pod) -> str:
        if pod.market in self.volume_elsewhere:
            return "0/3 nodes are available: 1 node(s) had volume node affinity conflict."
        return "0/3 nodes are available: insufficient nvidia.com/gpu"

    def _caches(self) -> list[CacheView]:
        views = []
        for (kind, name), claim in self.children.items():
            if kind != PVC.kind:
                continue
            zone = claim["metadata"]["labels"].get(names.LABEL_ZONE)
            job = self.children.get(
                (JOB.kind, names.cache_job(self.name, zone, self.spec.model.revision))
            )
            done = job is not None and job["status"].get("succeeded") == 1
            failed = job is not None and job["status"].get("failure")
            views.append(
                CacheView(
                    zone=zone,
                    bound=done or bool(failed),
                    complete=done,
                    revision=self.commit if done else None,
                    size_bytes=1000 if done else None,
                    failure=failed or None,
                    claim_message=None,
                )
            )
            assert name.startswith(self.name)
        return views

    def _deployments(self) -> dict[Market, Json]:
        return {
            Market(
                body["metadata"]["labels"][names.LABEL_POOL],
                body["metadata"]["labels"][names.LABEL_ZONE],
            ): body
            for (kind, _), body in self.children.items()
            if kind == DEPLOYMENT.kind
        }

    # --- act -------------------------------------------------------------------------------------

    def carry_out(self, plan: Plan) -> None:
        if not plan.empty:
            self.plans.append((self.now, plan))
        for doom in plan.dooms:
            pod = self.pods[doom.pod]
            pod.doomed_until, pod.doomed_reason = doom.until, doom.reason
            pod.cost = doom.deletion_cost
            self._wrote(f"doom {doom.pod} {doom.reason}")
        for apply in (*plan.scales, *plan.applies):
            self._apply(apply)
        for delete in plan.deletes:
            self._delete(delete)
        for pardon in plan.pardons:
            pod = self.pods[pardon.pod]
            pod.doomed_until, pod.doomed_reason, pod.cost = None, None, 0
            self._wrote(f"pardon {pardon.pod}")
        if plan.status is not None:
            assert plan.status != self.status
            # As over the wire: what a status cannot say is lost.
            self.status = TierStatus.model_validate(
                plan.status.model_dump(by_alias=True, exclude_none=True, mode="json")
            )
            self._wrote("status")
        self.events += [f"{e.reason}: {e.message}" for e in plan.events]

    def _wrote(self, what: str) -> None:
        self.writes.append(Write(self.now, what))

    def _apply(self, step: Apply) -> None:
        manifest = copy.deepcopy(step.manifest)
        key = (step.kind.kind, manifest["metadata"]["name"])
        before = self.children.get(key)
        version = manifest["metadata"].pop("resourceVersion", None)
        if before is not None:
            if step.kind is DEPLOYMENT:
                assert version == before["metadata"]["resourceVersion"], "not pinned"
            for field_name in ("uid", "generation"):
                manifest["metadata"][field_name] = before["metadata"][field_name]
            if manifest.get("spec") != before.get("spec"):
                manifest["metadata"]["generation"] += 1
        else:
            manifest["metadata"]["uid"] = f"uid-{next(self._ids)}"
            manifest["metadata"]["generation"] = 1
            manifest["metadata"]["creationTimestamp"] = times.to_text(self.now)
        manifest["metadata"]["resourceVersion"] = str(next(self._ids))
        manifest["status"] = {} if before is None else before["status"]
        assert before is None or manifest != before, f"no-op apply of {key}"
        self.children[key] = manifest
        size = manifest["spec"].get("replicas", "") if "spec" in manifest else ""
        self._wrote(f"apply {key[0]} {key[1]} {size}".rstrip())

    def _delete(self, step: Delete) -> None:
        if step.kind is POD:
            pod = self.pods.get(step.name)
            assert pod is not None
            assert pod.uid == step.uid
            if step.grace_s == 0:
                del self.pods[step.name]
            else:
                self._terminate(pod)
        else:
            live = self.children.pop((step.kind.kind, step.name))
            assert live["metadata"]["uid"] == step.uid
        self._wrote(f"delete {step.kind.kind} {step.name}")

    # --- the cluster's own controllers -----------------------------------------------------------

    def _cluster(self) -> None:
        self._markets()
        self._end_pods()
        self._jobs()
        self._replica_sets()
        self._schedule()
        self._kubelets()
        self._serve()

    def _markets(self) -> None:
        for node in list(self.nodes.values()):
            if node.notice_deadline is not None and self.now >= node.notice_deadline:
                del self.nodes[node.name]
                continue
            held = any(p.node == node.name and not p.ended for p in self.pods.values())
            used = held or self.now < node.up_at
            node.empty_since = None if used else node.empty_since or self.now
            if node.empty_since and self.now - node.empty_since > timedelta(seconds=60):
                del self.nodes[node.name]

    def _end_pods(self) -> None:
        for pod in list(self.pods.values()):
            node = self.nodes.get(pod.node) if pod.node else None
            if pod.deleting_until is None:
                continue
            alive = node is not None and not node.silent
            if pod.node is None or (alive and self.now >= pod.deleting_until):
                del self.pods[pod.name]

    def _jobs(self) -> None:
        for (kind, _), job in self.children.items():
            if kind != JOB.kind or job["status"]:
                continue
            made = times.parse(job["metadata"]["creationTimestamp"])
            zone = job["metadata"]["labels"].get(names.LABEL_ZONE)
            slow = zone is not None and zone == self.slow_zone
            if slow or self.now - made < timedelta(seconds=self.fetch_s):
                continue
            if self.hub_failure:
                at = times.to_text(self.now)
                failed = {"type": "Failed", "status": "True", "lastTransitionTime": at}
                job["status"] = {"failure": self.hub_failure, "conditions": [failed]}
            else:
                job["status"] = {"succeeded": 1}

    def _replica_sets(self) -> None:
        owners = {body["metadata"]["name"] for body in self._deployments().values()}
        for pod in list(self.pods.values()):
            if pod.deployment not in owners and pod.deleting_until is None:
                self._terminate(pod)
        for market, body in self._deployments().items():
            name, wanted = body["metadata"]["name"], body["spec"]["replicas"]
            template = body["metadata"]["annotations"][names.ANNOTATION_SPEC_HASH]
            mine = [
                p
                for p in self.pods.values()
                if p.deployment == name and not p.deleting_until and not p.ended
            ]
            surge = body["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
            old = [p for p in mine if p.template != template]
            fresh = [p for p in mine if p.template == template]
            if old and wanted:
                if surge and len(mine) <= wanted:
                    fresh.append(self._create(name, market, template))
                if not surge or any(p.ready_at for p in fresh):
                    self._terminate(old[0])
            elif len(mine) < wanted:
                fresh += [self._create(name, market, template) for _ in range(wanted - len(mine))]
            elif len(mine) > wanted:
                for pod in sorted(mine, key=_doomed_first)[: len(mine) - wanted]:
                    self._terminate(pod)
            ready = sum(p.ready_at is not None for p in mine)
            updated = sum(p.template == template for p in mine)
            body["status"] = {
                "observedGeneration": body["metadata"]["generation"],
                "updatedReplicas": updated,
                "availableReplicas": ready,
            }

    def _create(self, deployment: str, market: Market, template: str) -> Pod:
        number = next(self._ids)
        name = f"{deployment}-{number}"
        pod = Pod(name, f"uid-{number}", deployment, market, template, self.now)
        self.pods[name] = pod
        return pod

    def _terminate(self, pod: Pod) -> None:
        pod.deleting_until = self.now + timedelta(seconds=5)
        pod.ready_at = None

    def _schedule(self) -> None:
        taken = {p.node for p in self.pods.values() if not p.ended}
        for pod in self.pods.values():
            if pod.node is not None or pod.deleting_until or pod.market in self.volume_elsewhere:
                continue
            free = [
                n
                for n in self.nodes.values()
                if n.market == pod.market
                and n.name not in taken
                and n.notice_deadline is None
                and not n.silent
            ]
            if free and free[0].up_at <= self.now:
                pod.node, pod.bound_at = free[0].name, self.now
                taken.add(pod.node)
            elif not free:
                there = sum(n.market == pod.market for n in self.nodes.values())
                if there < self.capacity.get(pod.market, 1000):
                    name = f"node-{next(self._ids)}"
                    up_at = self.now + timedelta(seconds=self.boot_s)
                    self.nodes[name] = Node(name, pod.market, up_at)
                    taken.add(name)

    def _kubelets(self) -> None:
        for pod in self.pods.values():
            node = self.nodes.get(pod.node) if pod.node else None
            if (
                node is None
                or node.silent
                or pod.deleting_until
                or pod.bound_at is None
                or pod.ended
            ):
                continue
            if pod.running_at is None and self.pull_failure:
                pod.failure = self.pull_failure
                continue
            if pod.running_at is None and self.stuck_volume:
                continue
            if pod.running_at is None and self.now - pod.bound_at >= timedelta(seconds=2):
                pod.running_at = self.now
            if pod.running_at is None:
                continue
            age = self.now - pod.running_at
            if self.crash is not None and pod.ready_at is None:
                pod.restarts = int(age.total_seconds() // 10)
                pod.failure = f"CrashLoopBackOff: {self.crash}" if pod.restarts else None
            elif pod.ready_at is None and not pod.hangs and age >= timedelta(seconds=self.load_s):
                pod.ready_at, pod.failure, pod.loaded = self.now, None, True

    def _serve(self) -> None:
        """The gateway: streams on routable replicas; with none of them everything is parked."""
        routable = [p for p in self.ready if p.doomed_until is None and p.node in self.nodes]
        for pod in self.pods.values():
            pod.running = pod.waiting = 0
        if not routable:
            if self.streams and not self.parked:
                self.demand(self.streams)
            return
        self.parked = 0
        for number in range(self.streams):
            pod = routable[number % len(routable)]
            if pod.running < self.per_replica:
                pod.running += 1
            else:
                pod.waiting += 1


def _doomed_first(pod: Pod) -> tuple[bool, bool, int, float]:
    """The order in which a ReplicaSet removes pods."""
    return (
        pod.node is not None,
        pod.ready_at is not None,
        pod.cost,
        -pod.created_at.timestamp(),
    )


def tier(**changes: object) -> TierSpec:
    """A small spec; `changes` are top-level fields in wire form."""
    body: Json = {
        "model": {"source": "hf://acme/tiny"},
        "placement": {"pools": ["spot-a", "spot-b"]},
        "scaling": {"maxReplicas": 3, "targetRunning": 8, "targetWaiting": 2},
        **changes,
    }
    return TierSpec.model_validate(body)


def pool(
    zones: tuple[str, ...] = ("zone-1", "zone-2"),
    capacity_type: Literal["spot", "on-demand"] = "spot",
    *,
    cordoned: bool = False,
) -> PoolSpec:
    return PoolSpec(
        capacity_type=capacity_type, zones=list(zones), refusal_after="60s", cordoned=cordoned
    )


def world(**changes: object) -> World:
    """Two spot pools over two zones and an on-demand one; asleep, its cache complete."""
    made = World(
        spec=tier(**changes),
        pools={"spot-a": pool(), "spot-b": pool(), "steady": pool(("zone-1",), "on-demand")},
    )
    made.settle()
    return made
