"""Carrying out plans: order, guards, and what becomes of refusals."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from spotinference import errors
from spotinference.api import demand, names
from spotinference.api.conditions import Reason
from spotinference.api.kinds import (
    DEPLOYMENT,
    LEASE,
    NETWORK_POLICY,
    NODE,
    POD,
    POOL,
    SERVICE,
    TIER,
    Json,
)
from spotinference.api.tier_status import TierStatus
from spotinference.clients.clock import SystemClock
from spotinference.controller.act import DELETION_COST, NamespaceGoing
from spotinference.core.observed import NodeHealth, Observed
from spotinference.core.plan import (
    Apply,
    Delete,
    Doom,
    DoomReason,
    EventNote,
    EventType,
    Pardon,
    Plan,
)
from tests.unit.controller.objects import REF, TIER_UID, deployment, engine_pod, obj, tier
from tests.unit.controller.world import Shell

LATER = datetime(2026, 11, 21, 7, 0, tzinfo=UTC)


def shell() -> Shell:
    it = Shell(SystemClock())
    it.have(TIER, tier())
    spec: Json = {"capacityType": "spot", "zones": ["zone-a"]}
    it.have(POOL, obj(POOL, "spot", namespace=None, spec=spec))
    return it


def observed(it: Shell) -> Observed:
    found = it.observer.observe(REF)
    assert found is not None
    return found[0]


def scale(it: Shell, replicas: int, name: str = "demo-spot-zone-a") -> Apply:
    live = it.store.get(DEPLOYMENT, name, "default")
    manifest = deployment(replicas, name=name)
    manifest["metadata"].pop("uid")
    manifest["metadata"].pop("resourceVersion")
    if live is not None:
        manifest["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
    return Apply(DEPLOYMENT, manifest)


def condition(it: Shell, kind: str) -> Json:
    status = it.api.objects["InferenceTier", "default", "demo"]["status"]
    return next(c for c in status["conditions"] if c["type"] == kind)


async def test_scales_come_first_status_late_events_last() -> None:
    it = shell()
    it.have(DEPLOYMENT, deployment(0))
    pod = it.have(POD, engine_pod())
    plan = Plan(
        dooms=(Doom("pod-1", pod["metadata"]["uid"], LATER, DoomReason.NOTICE),),
        scales=(scale(it, 1),),
        applies=(Apply(SERVICE, obj(SERVICE, "demo-engine")),),
        deletes=(Delete(POD, "pod-1", pod["metadata"]["uid"], grace_s=0),),
        status=TierStatus(phase="Waking"),
        events=(EventNote(EventType.NORMAL, Reason.WAKING, "waking"),),
    )
    await it.actor.act(observed(it), plan)
    assert [write[:2] for write in it.wrote()] == [
        ("scale", "Deployment"),
        ("patch", "Pod"),
        ("apply", "Service"),
        ("delete", "Pod"),
        ("status", "InferenceTier"),
        ("create", "Event"),
    ]


async def test_a_pod_is_marked_before_its_deployment_shrinks() -> None:
    """A ReplicaSet that shrinks before it sees the mark ends any of its pods, a busy one too."""
    it = shell()
    it.have(DEPLOYMENT, deployment(2))
    pod = it.have(POD, engine_pod())
    doom = Doom("pod-1", pod["metadata"]["uid"], LATER, DoomReason.SCALE_DOWN)
    plan = Plan(dooms=(doom,), scales=(scale(it, 1),))
    it.api.refusals["patch", "Pod"] = errors.ApiUnavailable("503")
    with pytest.raises(errors.ApiUnavailable):
        await it.actor.act(observed(it), plan)
    assert [write[:2] for write in it.wrote()] == [("patch", "Pod")]
    it.api.refusals.clear()
    await it.actor.act(observed(it), plan)
    assert [write[:2] for write in it.wrote()][1:] == [("patch", "Pod"), ("scale", "Deployment")]


async def test_an_empty_plan_writes_nothing() -> None:
    it = shell()
    assert await it.actor.act(observed(it), Plan()) is None
    assert it.wrote() == []


async def test_a_process_that_lost_leadership_sends_nothing_more() -> None:
    it = shell()
    it.have(DEPLOYMENT, deployment(0))
    look = observed(it)
    it.leading = False
    with pytest.raises(errors.NotLeader):
        await it.actor.act(look, Plan(scales=(scale(it, 1),), status=TierStatus(phase="Waking")))
    assert it.wrote() == []


async def test_leadership_lost_between_two_writes_stops_the_second() -> None:
    it = shell()
    look = observed(it)
    steps = (Apply(SERVICE, obj(SERVICE, "a")), Apply(SERVICE, obj(SERVICE, "b")))

    def lose_after_one() -> bool:
        return len(it.wrote()) < 1

    it.writer._leads = lose_after_one
    with pytest.raises(errors.NotLeader):
        await it.actor.act(look, Plan(applies=steps))
    assert it.wrote() == [("apply", "Service", "a")]


async def test_a_scale_that_lost_a_race_ends_the_act_before_deletes_and_status() -> None:
    it = shell()
    it.have(DEPLOYMENT, deployment(0))
    it.api.refusals["scale", "Deployment"] = errors.Conflict("stale")
    plan = Plan(
        scales=(scale(it, 1),),
        deletes=(Delete(POD, "pod-1", "pod-1-uid"),),
        status=TierStatus(phase="Waking"),
    )
    with pytest.raises(errors.Conflict):
        await it.actor.act(observed(it), plan)
    assert [write[0] for write in it.wrote()] == ["scale"]


@pytest.mark.fault(6)
async def test_a_scale_that_lost_a_race_is_decided_again_on_what_is_there_now() -> None:
    """Also while the watch of Deployments is frozen: else it would lose again and again."""
    it = shell()
    it.have(DEPLOYMENT, deployment(0))
    it.api.put(DEPLOYMENT, deployment(0) | {"status": {"observedGeneration": 7}})
    with pytest.raises(errors.Conflict):
        await it.actor.act(observed(it), Plan(scales=(scale(it, 1),)))
    await it.actor.act(observed(it), Plan(scales=(scale(it, 1),)))
    assert it.api.objects["Deployment", "default", "demo-spot-zone-a"]["spec"]["replicas"] == 1


async def test_a_missing_right_is_a_condition_that_names_it_and_does_not_stop_the_rest() -> None:
    it = shell()
    it.api.refusals["apply", "NetworkPolicy"] = errors.Forbidden(
        'PATCH …: 403 User "x" cannot patch resource "networkpolicies"'
    )
    plan = Plan(
        applies=(
            Apply(NETWORK_POLICY, obj(NETWORK_POLICY, "demo-engine")),
            Apply(SERVICE, obj(SERVICE, "demo-engine")),
        ),
        status=TierStatus(phase="Asleep"),
    )
    again_s = await it.actor.act(observed(it), plan)
    assert again_s is not None
    assert ("apply", "Service", "demo-engine") in it.wrote()
    degraded = condition(it, "Degraded")
    assert degraded["status"] == "True"
    assert degraded["reason"] == "Forbidden"
    assert 'cannot patch resource "networkpolicies"' in degraded["message"]


async def test_a_right_that_stays_missing_writes_the_condition_once() -> None:
    it = shell()
    it.api.refusals["apply", "Service"] = errors.Forbidden("403 cannot patch services")
    plan = Plan(applies=(Apply(SERVICE, obj(SERVICE, "x")),), status=TierStatus(phase="Asleep"))
    for _ in range(3):
        await it.actor.act(observed(it), plan)
    assert [write[0] for write in it.wrote()].count("status") == 1


async def test_a_namespace_that_is_going_away_ends_everything_quietly() -> None:
    it = shell()
    it.api.refusals["apply", "Service"] = errors.Forbidden(
        "403 unable to create new content in namespace default because it is being terminated"
    )
    plan = Plan(applies=(Apply(SERVICE, obj(SERVICE, "x")),), status=TierStatus(phase="Asleep"))
    with pytest.raises(NamespaceGoing):
        await it.actor.act(observed(it), plan)
    assert [write[0] for write in it.wrote()] == ["apply"]


async def test_an_object_of_somebody_else_is_left_alone() -> None:
    it = shell()
    it.api.put(SERVICE, obj(SERVICE, "demo-engine", labels={"app": "theirs"}))
    plan = Plan(applies=(Apply(SERVICE, obj(SERVICE, "demo-engine")),))
    await it.actor.act(observed(it), plan)
    assert ("apply", "Service", "demo-engine") not in it.wrote()
    assert condition(it, "Degraded")["reason"] == "NameConflict"


async def test_a_name_that_a_child_of_another_tier_has_is_said() -> None:
    """Tier `demo` on pool `spot-x` and tier `demo-spot` on pool `x` make one name."""
    it = shell()
    taken = deployment(1)
    taken["metadata"]["labels"][names.LABEL_TIER] = "demo-spot"
    taken["metadata"]["ownerReferences"][0] |= {"uid": "other", "name": "demo-spot"}
    it.api.put(DEPLOYMENT, taken)
    await it.actor.act(observed(it), Plan(applies=(scale(it, 0),)))
    assert ("apply", "Deployment", "demo-spot-zone-a") not in it.wrote()
    assert condition(it, "Degraded")["reason"] == "NameConflict"


async def test_a_child_of_ours_without_its_labels_is_taken_back() -> None:
    it = shell()
    stripped = deployment(0)
    stripped["metadata"]["labels"] = {}
    it.api.put(DEPLOYMENT, stripped)
    await it.actor.act(observed(it), Plan(applies=(scale(it, 0),)))
    assert it.wrote() == [("apply", "Deployment", "demo-spot-zone-a")]


async def test_a_child_of_a_former_tier_of_the_same_name_is_waited_for() -> None:
    it = shell()
    former = deployment(0)
    former["metadata"]["ownerReferences"][0]["uid"] = "former"
    it.api.put(DEPLOYMENT, former)
    with pytest.raises(errors.Conflict):
        await it.actor.act(observed(it), Plan(applies=(scale(it, 0),)))
    assert it.wrote() == []


def demand_lease(gateway: str = "gw-1") -> Json:
    now = datetime.now(UTC)
    body = demand.lease(
        namespace="default",
        tier="demo",
        tier_uid=TIER_UID,
        demand=demand.Demand(gateway, 1, now),
        renewed_at=now,
    )
    body["metadata"]["uid"] = f"{gateway}-uid"
    return body


async def test_demand_that_the_watch_has_not_shown_yet_wins_over_going_to_sleep() -> None:
    it = shell()
    it.have(DEPLOYMENT, deployment(1))
    look = observed(it)
    it.api.put(LEASE, demand_lease())
    with pytest.raises(errors.Conflict, match="demand arrived"):
        await it.actor.act(look, Plan(scales=(scale(it, 0),)))
    assert it.wrote() == []
    assert len(observed(it).demands) == 1, "the next decision sees it"


async def test_going_to_sleep_without_demand_is_one_write() -> None:
    it = shell()
    it.have(DEPLOYMENT, deployment(1))
    await it.actor.act(observed(it), Plan(scales=(scale(it, 0),)))
    assert it.wrote() == [("scale", "Deployment", "demo-spot-zone-a")]


async def test_a_pod_is_not_struck_off_while_the_server_still_knows_its_node() -> None:
    it = shell()
    pod = it.have(POD, engine_pod(node="node-9"))
    node = it.have(NODE, obj(NODE, "node-9", namespace=None))
    it.store.gone(NODE, node)
    look = observed(it)
    assert look.replicas[0].node is not None
    assert look.replicas[0].node.health is NodeHealth.GONE
    delete = Delete(POD, "pod-1", pod["metadata"]["uid"], grace_s=0)
    with pytest.raises(errors.Conflict, match="there after all"):
        await it.actor.act(look, Plan(deletes=(delete,)))
    assert it.wrote() == []
    del it.api.objects["Node", "", "node-9"]
    it.store.gone(NODE, it.store.get(NODE, "node-9") or {})
    await it.actor.act(observed(it), Plan(deletes=(delete,)))
    assert it.wrote() == [("delete", "Pod", "pod-1")]


async def test_a_pod_of_the_same_name_but_another_uid_is_not_deleted() -> None:
    it = shell()
    it.have(POD, engine_pod())
    await it.actor.act(observed(it), Plan(deletes=(Delete(POD, "pod-1", "former-uid"),)))
    assert ("Pod", "default", "pod-1") in it.api.objects


async def test_dooming_and_pardoning_write_and_remove_the_same_three_annotations() -> None:
    it = shell()
    pod = it.have(POD, engine_pod())
    uid = pod["metadata"]["uid"]
    await it.actor.act(observed(it), Plan(dooms=(Doom("pod-1", uid, LATER, DoomReason.NODE_LOST),)))
    assert it.api.objects["Pod", "default", "pod-1"]["metadata"]["annotations"] == {
        names.ANNOTATION_DOOMED_UNTIL: "2026-11-21T07:00:00Z",
        names.ANNOTATION_DOOMED_REASON: "node-lost",
        DELETION_COST: "-1000",
    }
    assert observed(it).replicas[0].doomed_until == LATER, "known before the watch shows it"
    await it.actor.act(observed(it), Plan(pardons=(Pardon("pod-1", uid),)))
    assert it.api.objects["Pod", "default", "pod-1"]["metadata"]["annotations"] == {}


async def test_a_doomed_pod_that_is_gone_already_is_no_error() -> None:
    it = shell()
    doom = Doom("pod-7", "pod-7-uid", LATER, DoomReason.NOTICE)
    assert await it.actor.act(observed(it), Plan(dooms=(doom,))) is None


async def test_the_time_from_demand_to_the_scale_write_is_measured() -> None:
    it = shell()
    it.have(DEPLOYMENT, deployment(0))
    it.latencies.demand_seen(REF)
    await it.actor.act(observed(it), Plan(scales=(scale(it, 1),)))
    count = it.metrics.registry.get_sample_value("spotinference_operator_wake_seconds_count")
    assert count == 1.0


async def test_a_scale_writes_the_number_alone_and_the_store_knows_it_at_once() -> None:
    it = shell()
    live = it.have(DEPLOYMENT, deployment(0))
    await it.actor.act(observed(it), Plan(scales=(scale(it, 2),)))
    assert it.wrote() == [("scale", "Deployment", "demo-spot-zone-a")]
    known = it.store.get(DEPLOYMENT, "demo-spot-zone-a", "default")
    assert known is not None
    assert known["spec"]["replicas"] == 2
    assert int(known["metadata"]["resourceVersion"]) > int(live["metadata"]["resourceVersion"])
    assert known["metadata"]["generation"] == 1


async def test_a_scale_with_a_new_template_writes_the_whole() -> None:
    it = shell()
    it.have(DEPLOYMENT, deployment(0))
    wanted = scale(it, 2)
    wanted.manifest["spec"]["template"] = {"spec": {"hostname": "other"}}
    await it.actor.act(observed(it), Plan(scales=(wanted,)))
    assert it.wrote() == [("apply", "Deployment", "demo-spot-zone-a")]


async def test_a_scale_from_stale_state_loses() -> None:
    it = shell()
    live = it.have(DEPLOYMENT, deployment(0))
    plan, seen = Plan(scales=(scale(it, 2),)), observed(it)
    it.api.put(DEPLOYMENT, live | {"spec": {"replicas": 5}})
    with pytest.raises(errors.Conflict):
        await it.actor.act(seen, plan)
    assert it.api.objects["Deployment", "default", "demo-spot-zone-a"]["spec"]["replicas"] == 5
