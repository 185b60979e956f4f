"""The store: the newest body wins, whichever way it came."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from spotinference.api.kinds import DEPLOYMENT, NODE, POD, TIER
from spotinference.clients.clock import SystemClock
from spotinference.controller.store import TOMBSTONE_S, Change, Store
from tests.support.virtual_time import VirtualClock, virtual_time
from tests.unit.controller.objects import REF, deployment, engine_pod, obj, tier


def store() -> Store:
    return Store(SystemClock())


def test_a_watch_event_older_than_our_own_write_is_ignored() -> None:
    it = store()
    it.put(DEPLOYMENT, deployment(0, version=10))
    it.wrote(DEPLOYMENT, deployment(1, version=12))
    assert it.put(DEPLOYMENT, deployment(0, version=11)) is Change.STALE
    assert it.of_tier(DEPLOYMENT, REF)[0]["spec"]["replicas"] == 1


def test_the_echo_of_our_own_write_is_recognised_and_what_follows_is_news() -> None:
    it = store()
    it.wrote(DEPLOYMENT, deployment(1, version=12))
    assert it.put(DEPLOYMENT, deployment(1, version=12)) is Change.ECHO
    assert it.put(DEPLOYMENT, deployment(0, version=13)) is Change.NEW


@given(st.permutations([9, 10, 11, 12, 100]))
def test_versions_are_compared_as_numbers_in_whatever_order_they_come(order: list[int]) -> None:
    it = store()
    for version in order:
        it.put(DEPLOYMENT, deployment(version, version=version))
    assert it.of_tier(DEPLOYMENT, REF)[0]["spec"]["replicas"] == 100


def test_the_end_of_a_former_object_does_not_remove_its_successor() -> None:
    it = store()
    old, new = tier(uid="old", version=5), tier(uid="new", version=9)
    it.put(TIER, old)
    it.put(TIER, new)
    assert not it.gone(TIER, old)
    assert it.get(TIER, REF.name, REF.namespace) is not None
    assert it.gone(TIER, new)
    assert it.get(TIER, REF.name, REF.namespace) is None


def test_an_object_that_changes_its_tier_label_changes_sides() -> None:
    it = store()
    it.put(DEPLOYMENT, deployment(1, version=1))
    moved = deployment(1, version=2)
    moved["metadata"]["labels"] = {}
    it.put(DEPLOYMENT, moved)
    assert it.of_tier(DEPLOYMENT, REF) == []


@virtual_time
async def test_a_pod_that_we_struck_off_stays_hidden_until_the_watch_has_caught_up(
    clock: VirtualClock,
) -> None:
    it = Store(clock)
    pod = engine_pod()
    it.put(POD, pod)
    it.deleted(POD, pod, at_once=True)
    assert it.put(POD, engine_pod(version=2)) is Change.STALE
    assert it.of_tier(POD, REF) == []
    await asyncio.sleep(TOMBSTONE_S + 1)
    assert it.put(POD, engine_pod(version=2)) is Change.NEW


def test_a_pod_that_we_asked_to_end_reads_as_ending_before_the_watch_says_so() -> None:
    it = store()
    pod = engine_pod()
    it.put(POD, pod)
    it.deleted(POD, pod, at_once=False)
    assert it.of_tier(POD, REF)[0]["metadata"]["deletionTimestamp"]
    assert it.put(POD, engine_pod(version=2)) is Change.STALE
    assert it.of_tier(POD, REF)[0]["metadata"]["deletionTimestamp"]


def test_a_full_list_removes_what_the_watch_missed_and_spares_what_came_meanwhile() -> None:
    it = store()
    for name in ("stays", "vanished"):
        it.put(POD, engine_pod(name))
    before = list(it.all(POD))
    it.put(POD, engine_pod("newcomer", version=7))
    wrong = it.reconcile(POD, before, [engine_pod("stays"), engine_pod("unseen", version=8)], "9")
    assert sorted(pod["metadata"]["name"] for pod in wrong) == ["unseen", "vanished"]
    known = [pod["metadata"]["name"] for pod in it.of_tier(POD, REF)]
    assert known == ["newcomer", "stays", "unseen"]


def test_what_came_back_under_its_name_after_the_list_is_not_taken_for_gone() -> None:
    """A gateway's demand is deleted and made again under one name within moments."""
    it = store()
    it.put(POD, engine_pod("demand", version=3))
    before = list(it.all(POD))
    it.gone(POD, engine_pod("demand", version=5))
    it.put(POD, engine_pod("demand", version=9))
    assert it.reconcile(POD, before, [], "6") == []
    assert [pod["metadata"]["name"] for pod in it.of_tier(POD, REF)] == ["demand"]
    assert len(it.reconcile(POD, before, [], "12")) == 1


def test_removals_are_told_to_listeners_once() -> None:
    it = store()
    told: list[str] = []
    it.removed_listeners.append(lambda _, body: told.append(body["metadata"]["name"]))
    node = obj(NODE, "node-1", namespace=None)
    it.put(NODE, node)
    it.gone(NODE, node)
    it.gone(NODE, node)
    assert told == ["node-1"]


def test_managed_fields_and_image_lists_are_not_kept() -> None:
    it = store()
    node = obj(NODE, "node-1", namespace=None, status={"images": [{}] * 50, "conditions": []})
    node["metadata"]["managedFields"] = [{}]
    it.put(NODE, node)
    kept = it.get(NODE, "node-1")
    assert kept is not None
    assert "managedFields" not in kept["metadata"]
    assert kept["status"] == {"conditions": []}
    assert node["metadata"]["managedFields"], "what the watch gave is not changed"
