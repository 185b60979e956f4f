"""Deployments, Jobs, a scheduler, kubelets and markets of spot nodes, in memory on a virtual clock.

What a cluster does by itself; `world.py` puts a tier, its operator and its clients on top.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from spotinference.api import names, times
from spotinference.api.kinds import DEPLOYMENT, JOB, POD, Json
from spotinference.core import diff
from spotinference.core.observed import Market
from spotinference.core.plan import Apply, Delete

EPOCH = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)


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
    args: tuple[str, ...] = ()
    node: str | None = None
    bound_at: datetime | None = None
    running_at: datetime | None = None
    ready_at: datetime | None = None
    unready_since: datetime | None = None
    """of one that was ready before"""
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
    misses_probes: bool = False
    """not ready, but /metrics answers"""
    loaded: bool = False
    """its startup probe has passed"""
    ended: bool = False
    """phase Failed: its ReplicaSet makes another one, and leaves the object where it is"""


@dataclass(frozen=True)
class Write:
    """One mutating request."""

    at: datetime
    what: str


@dataclass(kw_only=True)
class VirtualCluster:
    capacity: dict[Market, int] = field(default_factory=dict)
    """nodes that a market can have; absent: as many as asked for"""
    boot_s: float = 20
    load_s: float = 30
    fetch_s: float = 10
    now: datetime = EPOCH
    children: dict[tuple[str, str], Json] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    pull_failure: str | None = None
    """the kubelet's own words when the image cannot be pulled"""
    stuck_volume: bool = False
    """bound pods stay in ContainerCreating, in which a kubelet says nothing"""
    crash: str | None = None
    """the engine's own words when every start fails"""
    broken: dict[Market, str | None] = field(default_factory=dict)
    """markets on whose nodes every start fails, with the engine's words; None: it never answers"""
    hub_failure: str | None = None
    volume_elsewhere: set[Market] = field(default_factory=set)
    """markets whose nodes cannot mount the volume of their pods"""
    slow_zone: str | None = None
    """where a cache job does not come to its end"""
    writes: list[Write] = field(default_factory=list)
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        # Uids begin anew in each world: what is remembered of another one's is not this one's.
        diff.forget()

    # --- requests that change it ------------------------------------------------------------------

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
                    fresh.append(self._create(name, market, body))
                if not surge or any(p.ready_at for p in fresh):
                    self._terminate(old[0])
            elif len(mine) < wanted:
                fresh += [self._create(name, market, body) for _ in range(wanted - len(mine))]
            elif len(mine) > wanted:
                for pod in sorted(mine, key=_doomed_first)[: len(mine) - wanted]:
                    self._terminate(pod)
            ready = sum(p.ready_at is not None for p in mine)
            updated = sum(p.template == template for p in mine)
            body["status"] = {
                "observedGeneration": body["metadata"]["generation"],
                "replicas": len(mine),
                "updatedReplicas": updated,
                "availableReplicas": ready,
            }

    def _create(self, deployment: str, market: Market, body: Json) -> Pod:
        number = next(self._ids)
        name = f"{deployment}-{number}"
        template = body["metadata"]["annotations"][names.ANNOTATION_SPEC_HASH]
        args = tuple(body["spec"]["template"]["spec"]["containers"][0]["args"])
        pod = Pod(name, f"uid-{number}", deployment, market, template, self.now, args)
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
            crash = self.crash or self.broken.get(pod.market)
            if crash is not None and pod.ready_at is None:
                pod.restarts = int(age.total_seconds() // 10)
                pod.failure = f"CrashLoopBackOff: {crash}" if pod.restarts else None
            elif pod.market in self.broken:
                continue
            elif (
                pod.ready_at is None
                and not (pod.hangs or pod.misses_probes)
                and age >= timedelta(seconds=self.load_s)
            ):
                pod.ready_at, pod.failure, pod.loaded = self.now, None, True

    def _deployments(self) -> dict[Market, Json]:
        return {
            Market(
                body["metadata"]["labels"][names.LABEL_POOL],
                body["metadata"]["labels"][names.LABEL_ZONE],
            ): body
            for (kind, _), body in self.children.items()
            if kind == DEPLOYMENT.kind
        }


def _doomed_first(pod: Pod) -> tuple[bool, bool, int, float]:
    """The order in which a ReplicaSet removes pods."""
    return (
        pod.node is not None,
        pod.ready_at is not None,
        pod.cost,
        -pod.created_at.timestamp(),
    )
