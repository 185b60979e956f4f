"""Children against what is there: edits, conflicts, rollouts, pools that come and go."""

from __future__ import annotations

import copy
from dataclasses import replace

from spotinference.core.observed import Market
from spotinference.core.plan import Plan
from spotinference.core.reconcile import decide
from tests.support.world import World, pool, tier, world

ENGINE = ("Deployment", "chat-spot-a-zone-1")


def serving(**changes: object) -> World:
    w = world(**changes)
    w.streams = 2
    w.run(60)
    w.writes.clear()
    return w


def test_a_hand_edited_image_is_put_back_and_an_event_names_the_field() -> None:
    w = world()
    body = w.by_hand(*ENGINE)
    body["spec"]["template"]["spec"]["containers"][0]["image"] = "evil:latest"
    w.step()
    image = w.children[ENGINE]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "vllm/vllm-openai:v0.32.0"
    assert any("containers[engine].image" in e and e.startswith("Reverted") for e in w.events)
    assert w.step().empty


def test_hand_scaled_replicas_are_put_back_in_one_step() -> None:
    w = serving()
    w.by_hand(*ENGINE)["spec"]["replicas"] = 4
    w.step()
    assert w.replicas == {"spot-a/zone-1": 1}
    assert any(e.startswith("Reverted") and "spec.replicas" in e for e in w.events)


def test_a_selector_with_a_key_more_is_put_back() -> None:
    w = world()
    w.by_hand("Service", "chat-engine")["spec"]["selector"]["app"] = "mine"
    w.step()
    assert "app" not in w.children[("Service", "chat-engine")]["spec"]["selector"]


def test_no_event_blames_anybody_for_what_the_tier_does_itself() -> None:
    w = serving()
    w.streams = 20
    w.run(200)
    w.reclaim(next(iter(w.nodes)))
    w.run(200)
    w.streams = 0
    w.edit(engine={"maxModelLen": 1024})
    w.run(2000)
    assert w.total == 0
    assert not [e for e in w.events if e.startswith("Reverted")]


def test_a_deployment_woken_by_hand_is_put_to_sleep() -> None:
    w = world()
    w.children[ENGINE]["spec"]["replicas"] = 1
    w.step()
    assert w.total == 0


def test_a_child_deleted_by_hand_is_made_again() -> None:
    w = world()
    del w.children[("NetworkPolicy", "chat-engine")]
    w.step()
    assert ("NetworkPolicy", "chat-engine") in w.children
    assert w.step().empty


def test_fields_of_other_owners_are_left_alone() -> None:
    w = world()
    body = w.children[ENGINE]
    body["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "3"
    body["metadata"]["labels"]["team"] = "search"
    body["spec"]["template"]["spec"]["containers"][0]["env"].append({"name": "X", "value": "1"})
    body["spec"]["template"]["spec"]["dnsPolicy"] = "ClusterFirst"
    assert w.step().empty


def test_a_foreign_object_of_the_same_name_is_never_touched() -> None:
    w = world()
    foreign = w.children[("Service", "chat-engine")]
    foreign["metadata"]["ownerReferences"] = []
    foreign["spec"]["selector"] = {"app": "other"}
    w.demand(3)
    plan = w.step()
    assert only_status(plan)
    assert w.condition("Degraded") == ("True", "NameConflict")
    assert "Service chat-engine" in w.message("Degraded")
    assert w.step().empty


def test_children_of_a_deleted_tier_of_this_name_are_waited_for() -> None:
    w = world()
    w.uid = "tier-2"
    plan = w.step()
    assert only_status(plan)
    assert plan.requeue_after_s is not None
    w.children = {k: c for k, c in w.children.items() if k[0] == "PersistentVolumeClaim"}
    w.settle()
    assert w.condition("Ready") == ("True", "Asleep")
    assert w.condition("Degraded") == ("False", "Healthy")


def test_a_retained_cache_is_used_again_and_never_deleted() -> None:
    w = world()
    claim = copy.deepcopy(w.children[("PersistentVolumeClaim", "chat-cache")])
    assert "ownerReferences" not in claim["metadata"]
    w.uid = "tier-2"
    w.children = {("PersistentVolumeClaim", "chat-cache"): claim}
    w.settle()
    assert (
        w.children[("PersistentVolumeClaim", "chat-cache")]["metadata"]["uid"]
        == (claim["metadata"]["uid"])
    )


def test_a_cache_that_is_not_retained_belongs_to_its_tier() -> None:
    w = world(cache={"retain": False})
    claim = w.children[("PersistentVolumeClaim", "chat-cache")]
    assert claim["metadata"]["ownerReferences"][0]["uid"] == "tier-1"


def test_a_larger_cache_grows_the_claim_and_a_smaller_one_leaves_it() -> None:
    w = world()
    w.edit(cache={"size": "200Gi"})
    w.step()
    claim = w.children[("PersistentVolumeClaim", "chat-cache")]
    assert claim["spec"]["resources"]["requests"]["storage"] == "200Gi"
    w.edit(cache={"size": "50Gi"})
    w.settle()
    claim = w.children[("PersistentVolumeClaim", "chat-cache")]
    assert claim["spec"]["resources"]["requests"]["storage"] == "200Gi"


def test_a_new_revision_rolls_one_market_at_a_time_and_the_new_is_ready_first() -> None:
    w = world(scaling={"minReplicas": 2, "maxReplicas": 3})
    w.run(60)
    assert len(w.ready) == 2
    w.edit(engine={"maxModelLen": 1024})
    plan = w.step()
    rolled = [a for a in plan.applies if a.manifest["spec"].get("replicas")]
    assert len(rolled) == 1
    for _ in range(200):
        w.step()
        assert len(w.ready) >= 2
        assert sum(p.ready_at is None and not p.deleting_until for p in w.pods.values()) <= 1
    assert len({p.template for p in w.ready}) == 2  # one template per market
    templates = {
        body["metadata"]["annotations"]["spotinference.dev/spec-hash"]
        for (kind, _), body in w.children.items()
        if kind == "Deployment" and body["spec"]["replicas"]
    }
    assert {p.template for p in w.ready} == templates


def test_a_new_revision_rolls_although_no_node_is_found_for_another_replica() -> None:
    w = world(scaling={"minReplicas": 1, "maxReplicas": 2})
    w.run(100)
    here = w.ready[0]
    w.capacity |= {Market(pool, zone): 0 for pool in w.pools for zone in ("zone-1", "zone-2")}
    w.capacity[here.market] = 1
    w.edit(scaling={"minReplicas": 2, "maxReplicas": 2})
    w.run(600)
    w.capacity[here.market] = 2
    w.edit(engine={"maxModelLen": 1024})
    w.run(200)
    assert {p.market for p in w.ready} == {here.market}
    assert here.template not in {p.template for p in w.ready}


def test_a_new_revision_that_crashes_leaves_the_old_one_serving() -> None:
    w = world(scaling={"minReplicas": 2, "maxReplicas": 2})
    w.run(60)
    old = {p.name for p in w.ready}
    w.crash = "unknown option"
    w.edit(engine={"maxModelLen": 1024})
    w.run(600)
    assert {p.name for p in w.ready} == old
    assert w.condition("Degraded") == ("True", "EngineFailed")
    assert w.condition("Ready") == ("True", "Serving")


def test_another_model_revision_is_fetched_before_the_old_one_stops_serving() -> None:
    w = serving()
    w.commit = "feedbeef" * 5
    w.edit(model={"source": "hf://acme/tiny", "revision": "v2"})
    w.step()
    assert w.status.weights is not None
    assert w.status.weights.requested == "main"
    assert len(w.ready) == 1
    w.run(120)
    assert w.status.weights is not None
    assert w.status.weights.requested == "v2"
    args = w.children[ENGINE]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[0] == "/cache/weights/" + "feedbeef" * 5
    assert len([k for k in w.children if k[0] == "Job"]) == 1


def test_with_a_volume_per_zone_the_old_revision_serves_until_every_zone_has_the_new_one() -> None:
    w = world(cache={"accessMode": "ReadWriteOnce"}, scaling={"minReplicas": 2, "maxReplicas": 2})
    w.run(100)
    assert len(w.ready) == 2
    old = w.commit
    w.commit, w.slow_zone = "feedbeef" * 5, "zone-2"
    w.edit(model={"source": "hf://acme/tiny", "revision": "v2"})
    w.run(200)
    assert served(w) == {old}
    assert len(w.ready) == 2
    w.slow_zone = None
    w.run(300)
    assert served(w) == {w.commit}
    assert len(w.ready) == 2


def served(w: World) -> set[str]:
    """Commits that the Deployments with replicas name."""
    return {
        body["spec"]["template"]["spec"]["containers"][0]["args"][0].rpartition("/")[2]
        for (kind, _), body in w.children.items()
        if kind == "Deployment" and body["spec"]["replicas"]
    }


def test_a_missing_pool_is_named_and_what_runs_goes_on() -> None:
    w = serving()
    del w.pools["spot-a"]
    w.step()
    assert w.condition("Degraded") == ("True", "PoolNotFound")
    assert "spot-a" in w.message("Degraded")
    assert w.condition("Ready") == ("True", "Serving")
    w.run(60)
    assert w.replicas == {"spot-a/zone-1": 1}
    w.streams = 0
    w.run(700)
    assert w.replicas == {}


def test_a_replica_lost_in_a_missing_pool_is_replaced_in_another() -> None:
    w = serving()
    del w.pools["spot-a"]
    w.step()
    w.reclaim(next(iter(w.nodes)))
    w.step()
    assert w.replicas == {"spot-b/zone-1": 1}


def test_no_pool_at_all_is_said_and_nothing_is_started() -> None:
    w = World(spec=tier(placement={"pools": ["gone"]}), pools={})
    w.demand(1)
    w.run(30)
    assert w.condition("Degraded") == ("True", "PoolNotFound")
    assert w.condition("Ready") == ("False", "PoolNotFound")
    assert not [k for k in w.children if k[0] == "Deployment"]


def test_a_cordoned_pool_keeps_what_runs_and_gets_nothing_new() -> None:
    w = serving()
    w.pools["spot-a"] = pool(cordoned=True)
    w.run(60)
    assert w.replicas == {"spot-a/zone-1": 1}
    assert w.condition("Degraded") == ("False", "Healthy")
    w.reclaim(next(iter(w.nodes)))
    w.step()
    assert w.replicas == {"spot-b/zone-1": 1}


def test_a_launch_that_waits_in_a_pool_is_called_off_when_the_pool_is_cordoned() -> None:
    w = world()
    w.capacity[Market("spot-a", "zone-1")] = 0
    w.demand(1)
    w.step()
    assert w.replicas == {"spot-a/zone-1": 1}
    w.pools["spot-a"] = pool(cordoned=True)
    w.step()
    assert w.replicas == {"spot-b/zone-1": 1}


def test_with_every_pool_cordoned_a_waiting_tier_says_so_and_starts_once_one_is_free() -> None:
    w = world()
    w.pools |= {name: pool(cordoned=True) for name in w.pools}
    w.demand(1)
    w.run(30)
    assert w.condition("Ready") == ("False", "PoolsCordoned")
    assert "spec.cordoned" in w.message("Ready")
    assert w.replicas == {}
    w.pools["spot-b"] = pool()
    w.run(80)
    assert w.condition("Ready") == ("True", "Serving")
    assert w.replicas == {"spot-b/zone-1": 1}


def test_a_cordoned_spot_pool_does_not_open_the_bridge_that_the_tier_forbids() -> None:
    w = world(placement={"pools": ["spot-a", "steady"], "onDemand": {"burst": False}})
    w.pools["spot-a"] = pool(cordoned=True)
    w.demand(1)
    w.run(30)
    assert w.condition("Ready") == ("False", "PoolsCordoned")
    w.edit(placement={"pools": ["spot-a", "steady"], "onDemand": {"burst": True}})
    w.run(80)
    assert w.replicas == {"steady/zone-1": 1}


def test_a_renamed_pool_moves_the_replicas_over() -> None:
    w = serving()
    w.pools["spot-c"] = pool()
    w.edit(placement={"pools": ["spot-c"]})
    w.run(80)
    assert w.replicas == {"spot-c/zone-1": 1}
    assert not [n for k, n in w.children if "spot-a" in n]


def test_a_tier_that_is_being_deleted_is_left_alone() -> None:
    from dataclasses import replace

    from spotinference.core.reconcile import decide

    w = serving()
    assert decide(replace(w.observe(), deleting=True, children={})) == Plan()


def only_status(plan: Plan) -> bool:
    return not (plan.scales or plan.applies or plan.deletes or plan.dooms)


def test_a_cache_that_is_to_be_retained_from_now_on_is_not_collected_with_its_tier() -> None:
    w = world(cache={"retain": False})
    (claim,) = (body for (kind, _), body in w.children.items() if kind == "PersistentVolumeClaim")
    assert claim["metadata"]["ownerReferences"]
    for retain, owners in ((True, 0), (False, 1)):
        w.edit(cache={"retain": retain})
        w.settle()
        (claim,) = (b for (kind, _), b in w.children.items() if kind == "PersistentVolumeClaim")
        assert len(claim["metadata"].get("ownerReferences", [])) == owners
        assert claim["spec"]["resources"]["requests"]["storage"] == "100Gi"
        w.writes.clear()
        w.run(20)
        assert w.writes == []


def test_a_cache_job_that_finds_no_node_is_named_in_the_condition() -> None:
    w = World(spec=tier(), pools={"spot-a": pool(), "spot-b": pool()}, fetch_s=1e6)
    w.run(3)
    seen = w.observe()
    (claim,) = seen.caches
    words = "0/3 nodes are available: 3 node(s) had untolerated taint(s)."
    waits = replace(claim, bound=True, claim_message=words)
    plan = decide(replace(seen, caches=(waits,)))
    assert plan.status is not None
    found = next(c for c in plan.status.conditions if c.type == "CacheReady")
    assert found.reason == "CacheFilling"
    assert "untolerated taint(s); it needs no GPU" in found.message
