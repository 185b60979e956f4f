"""Builds `core.observed.Observed` of one tier. Reads only, and only what is already here: the
store, the newest samples, our own observations of Leases. No request, so a decision never waits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from spotinference import errors
from spotinference.api import names, parse, times
from spotinference.api.kinds import (
    DEPLOYMENT,
    JOB,
    NETWORK_POLICY,
    PDB,
    POD,
    POOL,
    PVC,
    SERVICE,
    SERVICE_ACCOUNT,
    TIER,
    Json,
    Kind,
)
from spotinference.api.pool import PoolSpec
from spotinference.api.tier import TierSpec
from spotinference.clients.clock import Clock
from spotinference.controller.demand import DemandBook
from spotinference.controller.nodes import NodeWatch
from spotinference.controller.scrape import Scraper
from spotinference.controller.store import Store
from spotinference.core.observed import (
    CacheView,
    Learned,
    Market,
    NodeView,
    Observed,
    OperatorSettings,
    ReplicaView,
    TierRef,
)

CHILD_KINDS: tuple[Kind, ...] = (
    DEPLOYMENT,
    SERVICE,
    SERVICE_ACCOUNT,
    PVC,
    JOB,
    PDB,
    NETWORK_POLICY,
)
MAX_QUOTE = 500
"""characters of a container's own words in a condition"""
_HARMLESS_WAITS = frozenset({"ContainerCreating", "PodInitializing"})


@dataclass(frozen=True, slots=True)
class Observer:
    store: Store
    nodes: NodeWatch
    demand: DemandBook
    scraper: Scraper
    clock: Clock
    settings: OperatorSettings
    volume_zones: Callable[[Json], frozenset[str] | None] = lambda _: None
    """of a pod that waits; given by the composition root"""
    learned: Callable[[str], Learned | None] = lambda _: None
    """of a tier's uid"""
    _specs: dict[str, tuple[int, TierSpec]] = field(default_factory=dict)

    def observe(self, ref: TierRef) -> tuple[Observed, float | None] | None:
        """The tier as known now, and after how many seconds it changes by time alone.

        None when the tier does not exist; `SpecInvalid` when its spec cannot be read.
        """
        body = self.store.get(TIER, ref.name, ref.namespace)
        if body is None:
            return None
        meta = body["metadata"]
        spec = self._spec(body)
        demands, ends_s = self.demand.fresh(ref)
        pods = self.store.of_tier(POD, ref)
        pools = self._pools(spec, pods)
        observed = Observed(
            now=self.clock.now(),
            ref=ref,
            uid=meta["uid"],
            generation=int(meta.get("generation") or 0),
            deleting=meta.get("deletionTimestamp") is not None,
            spec=spec,
            status=parse.parse_status(body),
            pools=pools,
            replicas=tuple(
                self._replica(pod, pools) for pod in pods if _role(pod) == names.ROLE_ENGINE
            ),
            caches=self._caches(ref, spec, pods),
            demands=demands,
            children=self._children(ref),
            settings=self.settings,
            learned=self.learned(meta["uid"]),
        )
        return observed, ends_s

    def forget(self, uid: str) -> None:
        self._specs.pop(uid, None)

    def _spec(self, body: Json) -> TierSpec:
        meta = body["metadata"]
        generation = int(meta.get("generation") or 0)
        cached = self._specs.get(meta["uid"])
        if cached is not None and cached[0] == generation:
            return cached[1]
        spec = parse.stored_tier(body)
        self._specs[meta["uid"]] = (generation, spec)
        return spec

    def _pools(self, spec: TierSpec, pods: Iterable[Json]) -> dict[str, PoolSpec]:
        """Those that the tier names, and those that it named when its pods were made."""
        found = {}
        labels = (pod["metadata"].get("labels") or {} for pod in pods)
        there = {str(of[names.LABEL_POOL]) for of in labels if names.LABEL_POOL in of}
        for name in dict.fromkeys([*spec.placement.pools, *sorted(there)]):
            body = self.store.get(POOL, name)
            if body is None or body["metadata"].get("deletionTimestamp"):
                continue
            try:
                found[name] = parse.stored_pool(body)
            except errors.SpecInvalid:
                continue  # as good as absent: PoolNotFound tells the user where to look
        return found

    def _children(self, ref: TierRef) -> dict[tuple[str, str], Json]:
        """Live children, those of an earlier tier of the same name included (`decide` waits)."""
        return {
            (kind.kind, child["metadata"]["name"]): child
            for kind in CHILD_KINDS
            for child in self.store.of_tier(kind, ref)
        }

    # --- replicas -------------------------------------------------------------------------------

    def _replica(self, pod: Json, pools: dict[str, PoolSpec]) -> ReplicaView:
        meta, status = pod["metadata"], pod.get("status") or {}
        labels = meta.get("labels") or {}
        annotations = meta.get("annotations") or {}
        market = Market(labels.get(names.LABEL_POOL, ""), labels.get(names.LABEL_ZONE, ""))
        ready = _condition(pod, "Ready")
        scheduled = _condition(pod, "PodScheduled")
        unschedulable = scheduled.get("status") == "False"
        engine = _container(status, names.ENGINE_CONTAINER)
        is_ready = ready.get("status") == "True"
        return ReplicaView(
            name=meta["name"],
            uid=meta["uid"],
            market=market,
            created_at=times.parse(meta["creationTimestamp"]),
            node=self._node(pod, pools.get(market.pool)),
            ready=is_ready,
            running="running" in (engine.get("state") or {}),
            deleting=meta.get("deletionTimestamp") is not None,
            loaded=engine.get("started") is True,
            ended=status.get("phase") in {"Failed", "Succeeded"},
            ip=status.get("podIP"),
            ready_at=_time(ready.get("lastTransitionTime")) if is_ready else None,
            unready_since=None if is_ready else _time(ready.get("lastTransitionTime")),
            doomed_until=_time(annotations.get(names.ANNOTATION_DOOMED_UNTIL)),
            doomed_reason=annotations.get(names.ANNOTATION_DOOMED_REASON),
            restarts=int(engine.get("restartCount") or 0),
            scheduled_at=(
                _time(scheduled.get("lastTransitionTime"))
                if scheduled.get("status") == "True"
                else None
            ),
            unschedulable_since=(
                _time(scheduled.get("lastTransitionTime")) if unschedulable else None
            ),
            unschedulable_message=str(scheduled.get("message", "")) if unschedulable else "",
            volume_zones=self.volume_zones(pod) if unschedulable else None,
            failure=failure_of(pod, engine),
            revision=labels.get("pod-template-hash"),
            sample=self.scraper.sample_of(meta["uid"]),
            window=self.scraper.window_of(meta["uid"]),
        )

    def _node(self, pod: Json, pool: PoolSpec | None) -> NodeView | None:
        name = pod["spec"].get("nodeName")
        return self.nodes.view(name, pool) if name else None

    # --- caches ---------------------------------------------------------------------------------

    def _caches(self, ref: TierRef, spec: TierSpec, pods: list[Json]) -> tuple[CacheView, ...]:
        return tuple(
            self._cache(ref, spec, claim, pods)
            for claim in self.store.of_tier(PVC, ref)
            if _role(claim) == names.ROLE_CACHE
            and claim["metadata"].get("deletionTimestamp") is None
        )

    def _cache(self, ref: TierRef, spec: TierSpec, claim: Json, pods: list[Json]) -> CacheView:
        zone = (claim["metadata"].get("labels") or {}).get(names.LABEL_ZONE)
        job_name = names.cache_job(ref.name, zone, spec.model.revision)
        job = self.store.get(JOB, job_name, ref.namespace)
        tries = [pod for pod in pods if _job_of(pod) == job_name]
        result = _fetch_result(tries)
        complete = job is not None and _condition(job, "Complete").get("status") == "True"
        return CacheView(
            zone=zone,
            bound=(claim.get("status") or {}).get("phase") == "Bound",
            complete=complete,
            revision=_text(result.get("revision")),
            size_bytes=_number(result.get("bytes")),
            failure=None if complete else _fetch_failure(job, tries, result),
            claim_message=None if complete else _unscheduled(tries),
        )


# --- parts of objects -----------------------------------------------------------------------------


def owner_uid(child: Json) -> str | None:
    """The uid of the tier that owns a child, if any does."""
    for owner in child["metadata"].get("ownerReferences") or ():
        if owner.get("kind") == TIER.kind:
            return str(owner.get("uid"))
    return None


def failure_of(pod: Json, engine: Json) -> str | None:
    """The container's (or kubelet's) own words why it does not run; None while all is well."""
    status = pod.get("status") or {}
    if status.get("phase") == "Failed":
        return _quote(status.get("reason") or "Failed", status.get("message") or _ended(engine))
    waiting = (engine.get("state") or {}).get("waiting") or {}
    reason = waiting.get("reason")
    if reason is None or reason in _HARMLESS_WAITS:
        terminated = (engine.get("state") or {}).get("terminated")
        return _quote("Terminated", _ended(engine)) if terminated else None
    ended = _ended(engine)
    return _quote(str(reason), "; ".join(filter(None, [ended, str(waiting.get("message") or "")])))


def _ended(engine: Json) -> str:
    """How the last run of a container ended, in its own words."""
    terminated = (engine.get("state") or {}).get("terminated") or (
        engine.get("lastState") or {}
    ).get("terminated")
    if not terminated:
        return ""
    code, reason = terminated.get("exitCode"), terminated.get("reason") or "ended"
    words = str(terminated.get("message") or "").strip()
    return f"{reason}, exit code {code}" + (f": {words[-MAX_QUOTE:]}" if words else "")


def _quote(reason: str, words: str) -> str:
    return f"{reason}: {words}"[: 2 * MAX_QUOTE] if words else reason


def _fetch_result(tries: list[Json]) -> Json:
    """What the newest finished try wrote as its termination message."""
    newest = sorted(tries, key=lambda pod: pod["metadata"]["creationTimestamp"], reverse=True)
    for pod in newest:
        for container in (pod.get("status") or {}).get("containerStatuses") or ():
            ended = (container.get("state") or {}).get("terminated") or (
                container.get("lastState") or {}
            ).get("terminated")
            try:
                result = json.loads((ended or {}).get("message") or "")
            except ValueError:
                continue
            if isinstance(result, dict):
                return result
    return {}


def _fetch_failure(job: Json | None, tries: list[Json], result: Json) -> str | None:
    failed = _condition(job, "Failed") if job is not None else {}
    if failed.get("status") == "True":
        words = result.get("message") or failed.get("message") or ""
        return _quote(str(result.get("error") or failed.get("reason") or "Failed"), str(words))
    if result.get("error"):
        return _quote(str(result["error"]), str(result.get("message") or ""))
    for pod in tries:
        for container in (pod.get("status") or {}).get("containerStatuses") or ():
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") and waiting["reason"] not in _HARMLESS_WAITS:
                return _quote(waiting["reason"], str(waiting.get("message") or ""))
    return None


def _unscheduled(tries: list[Json]) -> str | None:
    """Why a claim is not bound, or no node takes its job, in the words of the pod that waits."""
    for pod in tries:
        scheduled = _condition(pod, "PodScheduled")
        if scheduled.get("status") == "False":
            return str(scheduled.get("message") or "") or None
    return None


def _role(body: Json) -> str | None:
    role = (body["metadata"].get("labels") or {}).get(names.LABEL_ROLE)
    return str(role) if role else None


def _job_of(pod: Json) -> str | None:
    labels = pod["metadata"].get("labels") or {}
    name = labels.get("batch.kubernetes.io/job-name") or labels.get("job-name")
    return str(name) if name else None


def _condition(body: Json, kind: str) -> Json:
    for condition in (body.get("status") or {}).get("conditions") or ():
        if condition.get("type") == kind:
            found: Json = condition
            return found
    return {}


def _container(status: Json, name: str) -> Json:
    for container in status.get("containerStatuses") or ():
        if container.get("name") == name:
            found: Json = container
            return found
    return {}


def _time(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        return times.parse(text)
    except ValueError:
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
