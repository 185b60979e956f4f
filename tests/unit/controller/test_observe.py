"""From Kubernetes objects to what a decision sees."""

from __future__ import annotations

import json

import pytest

from spotinference import errors
from spotinference.api import names
from spotinference.api.kinds import DEPLOYMENT, JOB, POD, POOL, PVC, TIER, Json
from spotinference.clients.clock import SystemClock
from spotinference.core.observed import CacheView, Market, Observed, ReplicaView
from tests.unit.controller.objects import REF, deployment, engine_pod, obj, tier
from tests.unit.controller.world import Shell


def shell() -> Shell:
    it = Shell(SystemClock())
    it.have(TIER, tier(model={"source": "hf://org/name"}))
    spec: Json = {"capacityType": "spot", "zones": ["zone-a"]}
    it.have(POOL, obj(POOL, "spot", namespace=None, spec=spec))
    return it


def observed(it: Shell) -> Observed:
    found = it.observer.observe(REF)
    assert found is not None
    return found[0]


def replica(pod: Json) -> ReplicaView:
    it = shell()
    it.have(POD, pod)
    (view,) = observed(it).replicas
    return view


def test_an_absent_tier_is_none() -> None:
    assert Shell(SystemClock()).observer.observe(REF) is None


def test_a_ready_pod_is_a_ready_replica_of_its_market() -> None:
    view = replica(engine_pod())
    assert view.market == Market("spot", "zone-a")
    assert view.ready
    assert view.running
    assert view.failure is None
    assert view.revision == "abc"
    assert view.ready_at is not None


def test_a_pod_without_a_node_says_since_when_and_why() -> None:
    pod = engine_pod(node=None, ready=False)
    pod["status"] = {
        "phase": "Pending",
        "conditions": [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/3 nodes are available",
                "lastTransitionTime": "2026-11-21T06:00:00Z",
            }
        ],
    }
    view = replica(pod)
    assert view.node is None
    assert view.unschedulable_since is not None
    assert view.unschedulable_message == "0/3 nodes are available"


@pytest.mark.parametrize(
    ("state", "last", "words"),
    [
        ({"waiting": {"reason": "ContainerCreating"}}, {}, None),
        ({"running": {}}, {"terminated": {"exitCode": 1}}, None),
        (
            {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
            {},
            "ImagePullBackOff: no such image",
        ),
        (
            {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
            {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
            "CrashLoopBackOff: OOMKilled, exit code 137; back-off 10s",
        ),
        (
            {"terminated": {"exitCode": 1, "reason": "Error", "message": "CUDA out of memory"}},
            {},
            "Terminated: Error, exit code 1: CUDA out of memory",
        ),
    ],
)
def test_a_failing_container_is_quoted_in_its_own_words(
    state: Json, last: Json, words: str | None
) -> None:
    pod = engine_pod(ready=False)
    pod["status"]["containerStatuses"][0] |= {"state": state, "lastState": last}
    assert replica(pod).failure == words


def test_a_pod_that_the_kubelet_refused_is_a_failure() -> None:
    pod = engine_pod(ready=False)
    pod["status"] |= {"phase": "Failed", "reason": "OutOfnvidia.com/gpu", "message": "no GPU left"}
    assert replica(pod).failure == "OutOfnvidia.com/gpu: no GPU left"


# --- caches ---------------------------------------------------------------------------------------


def cache_objects(
    it: Shell, *, job_condition: str | None, message: str | None, zone: str | None = None
) -> None:
    labels = names.tier_labels(REF.name, names.ROLE_CACHE)
    if zone is not None:
        labels[names.LABEL_ZONE] = zone
    it.have(
        PVC, obj(PVC, names.cache_claim(REF.name, zone), labels=labels, status={"phase": "Bound"})
    )
    job = names.cache_job(REF.name, zone, "main")
    conditions = [{"type": job_condition, "status": "True"}] if job_condition else []
    it.have(JOB, obj(JOB, job, labels=labels, status={"conditions": conditions}))
    pod = obj(
        POD,
        f"{job}-x",
        labels={**labels, "batch.kubernetes.io/job-name": job},
        spec={},
        status={
            "containerStatuses": [
                {"name": "fetch", "state": {"terminated": {"exitCode": 0, "message": message}}}
            ]
        },
    )
    pod["metadata"]["creationTimestamp"] = "2026-11-21T06:00:00Z"
    it.have(POD, pod)


def cache(it: Shell) -> CacheView:
    (view,) = observed(it).caches
    return view


def test_a_finished_cache_job_tells_its_commit_and_size() -> None:
    it = shell()
    result = json.dumps({"revision": "c0ffee", "bytes": 123, "downloadedBytes": 123})
    cache_objects(it, job_condition="Complete", message=result, zone="zone-a")
    assert cache(it) == CacheView(
        zone="zone-a", bound=True, complete=True, revision="c0ffee", size_bytes=123
    )
    assert observed(it).replicas == (), "the job's pod is no replica"


def test_a_failed_cache_job_tells_why() -> None:
    it = shell()
    result = json.dumps({"error": "CacheFull", "message": "needs 15 GB, has 10"})
    cache_objects(it, job_condition="Failed", message=result)
    assert cache(it).failure == "CacheFull: needs 15 GB, has 10"


@pytest.mark.parametrize("message", ["", "not json", "[1]", '{"bytes": true}', None])
def test_a_damaged_result_is_no_commit(message: str | None) -> None:
    it = shell()
    cache_objects(it, job_condition="Complete", message=message)
    view = cache(it)
    assert view.complete
    assert view.revision is None
    assert view.size_bytes is None


# --- the tier itself ------------------------------------------------------------------------------


def test_children_are_found_by_kind_and_name() -> None:
    it = shell()
    it.have(DEPLOYMENT, deployment(1))
    assert list(observed(it).children) == [("Deployment", "demo-spot-zone-a")]


def test_a_spec_that_cannot_be_read_names_its_field() -> None:
    it = shell()
    it.have(TIER, tier(scaling={"maxReplicas": "many"}))
    it.observer.forget("tier-uid")
    with pytest.raises(errors.SpecInvalid, match=r"spec\.scaling\.maxReplicas"):
        it.observer.observe(REF)


def test_a_status_damaged_by_hand_counts_as_none() -> None:
    it = shell()
    body = tier()
    body["status"] = {"phase": "Dancing"}
    it.have(TIER, body)
    assert observed(it).status.phase is None


def test_defaults_of_a_newer_crd_make_neither_tier_nor_pool_unreadable() -> None:
    """An upgrade brings the CRDs first: until we are replaced, their defaults stand in all objects."""
    it = shell()
    before = observed(it)
    for kind, name, namespace in ((TIER, REF.name, REF.namespace), (POOL, "spot", "")):
        body = it.store.get(kind, name, namespace)
        assert body is not None
        it.have(kind, {**body, "spec": {**body["spec"], "reserve": {"share": 1}}})
    it.observer.forget("tier-uid")
    assert (observed(it).spec, observed(it).pools) == (before.spec, before.pools)


def test_a_pool_that_is_named_no_more_is_read_while_something_stands_there() -> None:
    it = shell()
    it.have(TIER, tier(placement={"pools": ["absent"]}))
    assert not observed(it).pools
    it.have(POD, engine_pod())
    assert list(observed(it).pools) == ["spot"]


def test_a_pool_that_is_not_there_is_left_out() -> None:
    it = shell()
    it.have(TIER, tier(placement={"pools": ["spot", "absent"]}))
    it.observer.forget("tier-uid")
    assert list(observed(it).pools) == ["spot"]


@pytest.mark.parametrize(("phase", "ended"), [("Failed", True), ("Running", False)])
def test_an_evicted_pod_has_ended(phase: str, ended: bool) -> None:
    pod = engine_pod(ready=False)
    pod["status"]["phase"] = phase
    assert replica(pod).ended is ended


@pytest.mark.parametrize("started", [True, False])
def test_a_replica_whose_startup_probe_has_passed_is_loaded(started: bool) -> None:
    pod = engine_pod(ready=False)
    pod["status"]["containerStatuses"][0]["started"] = started
    assert replica(pod).loaded is started


def test_a_bound_cache_whose_job_finds_no_node_says_so() -> None:
    it = shell()
    cache_objects(it, job_condition=None, message=None)
    (pod,) = (p for p in it.store.all(POD).values() if "job" in str(p["metadata"]["labels"]))
    words = "0/3 nodes are available: 3 node(s) had untolerated taint(s)"
    waits = {"type": "PodScheduled", "status": "False", "message": words}
    status = {"phase": "Pending", "conditions": [waits]}
    meta = {**pod["metadata"], "resourceVersion": "99"}
    it.have(POD, {**pod, "metadata": meta, "status": status})
    assert cache(it).bound
    assert cache(it).claim_message == words
