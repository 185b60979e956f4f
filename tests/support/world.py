"""An in-memory cluster for one tier: Deployments, scheduler, kubelets and markets on a virtual
clock, with `decide` in its loop. Deterministic; 10,000 steps take seconds.

    world = World(spec=tier(), pools={"spot-a": pool()})
    world.demand(3)
    world.run(120)
    assert world.status.phase == "Ready"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from spotinference.api import names
from spotinference.api.demand import Demand
from spotinference.api.kinds import JOB, PVC, Json
from spotinference.api.pool import PoolSpec
from spotinference.api.tier import TierSpec
from spotinference.api.tier_status import TierStatus
from spotinference.core.observed import (
    CacheView,
    Confidence,
    NodeHealth,
    NodeView,
    Notice,
    Observed,
    OperatorSettings,
    ReplicaView,
    Sample,
    TierRef,
    Window,
)
from spotinference.core.plan import Plan
from spotinference.core.reconcile import begin
from spotinference.core.window import arguments_hash
from tests.support.virtual_cluster import EPOCH, Pod, VirtualCluster

COMMIT = "c0ffee00" * 5


@dataclass(kw_only=True)
class World(VirtualCluster):
    spec: TierSpec
    pools: dict[str, PoolSpec]
    status: TierStatus = field(default_factory=TierStatus)
    generation: int = 1
    uid: str = "tier-1"
    name: str = "chat"
    parked: int = 0
    streams: int = 0
    """requests that the replicas have to carry, spread evenly; what does not fit waits"""
    per_replica: int = 1000
    metrics: bool = True
    api_behind_s: float = 0
    """how far the API server's clock, which stamps pods, is behind the operator's"""
    tells_window: int | None = None
    """context window that engines report; None: they are never read for it"""
    commit: str = COMMIT
    plans: list[tuple[datetime, Plan]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    parked_since: datetime = EPOCH

    # --- what a test does ------------------------------------------------------------------------

    def run(self, seconds: float, step_s: float = 1) -> None:
        """Let time pass; the operator looks once per step."""
        for _ in range(round(seconds / step_s)):
            self.step(step_s)

    def step(self, step_s: float = 1) -> Plan:
        self.now += timedelta(seconds=step_s)
        self._cluster()
        self._serve()
        begun = begin(self.observe())
        plan = begun.whole()
        assert begun.urgent == Plan(dooms=plan.dooms, scales=plan.scales)
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
            pools={
                n: p
                for n, p in self.pools.items()
                if n in self.spec.placement.pools
                or any(x.market.pool == n for x in self.pods.values())
            },
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
        read = (serving or pod.misses_probes) and self.metrics
        sample = Sample(self.now, pod.running, pod.waiting) if read else None
        return ReplicaView(
            name=pod.name,
            uid=pod.uid,
            market=pod.market,
            created_at=pod.created_at - timedelta(seconds=self.api_behind_s),
            node=node,
            ready=serving,
            running=pod.running_at is not None,
            deleting=pod.deleting_until is not None,
            ended=pod.ended,
            loaded=pod.loaded,
            ready_at=pod.ready_at,
            unready_since=None if serving else pod.unready_since,
            scheduled_at=pod.bound_at,
            doomed_until=pod.doomed_until,
            doomed_reason=pod.doomed_reason,
            unschedulable_since=pod.created_at if refused else None,
            unschedulable_message=self._scheduler_says(pod) if refused else "",
            failure=pod.failure,
            restarts=pod.restarts,
            revision=pod.template,
            sample=sample,
            window=Window(self.tells_window, arguments_hash(pod.args))
            if serving and self.tells_window is not None
            else None,
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
    capacity_type: Literal["spot", "on-demand", "reserved"] = "spot",
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
