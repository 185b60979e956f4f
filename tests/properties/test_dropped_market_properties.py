"""Pools and zones come and go under a tier while nodes do too: nothing is left where it is not named."""

from __future__ import annotations

import os
from collections import defaultdict
from random import Random

import pytest

from spotinference.api.pool import PoolSpec
from spotinference.core.fleet import owned
from tests.support.virtual_cluster import Pod
from tests.support.world import World, pool, tier

STEP_S = 5
STORIES = int(os.environ.get("SPOTINFERENCE_TEST_EXAMPLES", "8"))
ZONES = ("zone-1", "zone-2")
POOLS: dict[str, PoolSpec] = {
    "one": pool(ZONES),
    "two": pool(ZONES),
    "held": pool(ZONES, "reserved"),
    "sure": pool(ZONES, "on-demand"),
}
NAMED = (["one"], ["two"], ["one", "two"], ["two", "sure"], ["sure"], ["held", "one"], ["misspelt"])


def begun(rng: Random) -> World:
    mode = rng.choice(["ReadWriteMany", "ReadWriteOnce"])
    w = World(
        spec=tier(
            cache={"accessMode": mode},
            placement={"pools": ["one", "two"]},
            interruption={"drain": "60s"},
        ),
        pools=dict(POOLS),
    )
    w.settle()
    w.streams = 20
    w.run(120, STEP_S)
    return w


def happen(rng: Random, w: World) -> None:
    nodes, pools = sorted(w.nodes), sorted(w.pools)
    match rng.choice(["name", "zones", "delete", "make", "edit", "notice", "silent", "load"]):
        case "name":
            rules = w.spec.placement.model_dump(by_alias=True, exclude_none=True)
            w.edit(placement={**rules, "pools": rng.choice(NAMED)})
        case "zones" if pools:
            name = rng.choice(pools)
            zones = rng.choice([["zone-1"], ["zone-2"], list(ZONES), ["zone-3"]])
            w.pools[name] = w.pools[name].model_copy(update={"zones": zones})
        case "delete" if pools:
            del w.pools[rng.choice(pools)]
        case "make":
            w.pools = {**POOLS, **w.pools}
        case "edit":
            w.edit(paused=rng.random() < 0.3, replicas=rng.choice([None, 0, 1, 2, 3]))
        case "notice" if nodes:
            w.notice(rng.choice(nodes), rng.choice([10, 120]))
        case "silent" if nodes:
            node = w.nodes[rng.choice(nodes)]
            node.silent = not node.silent
        case "load":
            w.streams = rng.choice([0, 1, 20])


def steps(w: World, count: int, seen: defaultdict[str, list[tuple[str, str]]]) -> None:
    for _ in range(count):
        before = {p.uid: p.running for p in w.pods.values() if p.deleting_until is None}
        w.step(STEP_S)
        ended = [p for p in w.pods.values() if before.get(p.uid) and p.deleting_until is not None]
        assert not [p for p in ended if _healthy(w, p) and not _drained(w, p)]
        for condition in w.status.conditions:
            row = seen[condition.type]
            row.append((condition.status, condition.reason))
            a, b, *rest = row[-6:] if len(row) > 5 else (row[-1], row[-1])
            assert a == b or rest != [a, b, a, b], f"{condition.type} flaps: {a}, {b}"


def _healthy(w: World, pod: Pod) -> bool:
    node = w.nodes.get(pod.node or "")
    return node is not None and not node.silent and node.notice_deadline is None


def _drained(w: World, pod: Pod) -> bool:
    return pod.doomed_until is not None and pod.doomed_until <= w.now


@pytest.mark.parametrize("seed", range(STORIES))
def test_whatever_is_dropped_and_named_again_only_what_is_named_is_left(seed: int) -> None:
    rng = Random(seed)
    w = begun(rng)
    seen: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for _ in range(10):
        happen(rng, w)
        steps(w, rng.choice([1, 2, 10, 40]), seen)
    w.pools = {**POOLS, **w.pools}
    for node in w.nodes.values():
        node.silent = False
    if "misspelt" in w.spec.placement.pools:
        w.edit(placement={"pools": ["one"]})
    w.streams = 4
    w.run(2 * 3600, 4 * STEP_S)
    written = len(w.writes)
    w.run(600, 2 * STEP_S)
    assert w.writes[written:] == []
    named = {f"{n}/{zone}" for n in w.spec.placement.pools for zone in w.pools[n].zones}
    assert {str(market) for market in w._deployments()} <= named
    assert w.total == len(w.ready) == _wanted(w, len({m.split("/")[1] for m in named}))
    assert all(p.doomed_until is None for p in w.pods.values())
    kept = {"PersistentVolumeClaim"}  # retained, whoever deletes the tier
    assert all(owned(body, w.uid) for (kind, _), body in w.children.items() if kind not in kept)


def _wanted(w: World, zones: int) -> int:
    if w.spec.paused:
        return 0
    asked = w.spec.replicas or 1  # four streams, which one replica carries
    return min(asked, zones) if w.spec.cache.access_mode == "ReadWriteOnce" else asked
