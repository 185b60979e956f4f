"""Which nodes are launched for which pods: the pure plan."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference.api.kinds import Json
from spotinference.core.observed import Market
from spotinference.devcluster import market, topology
from spotinference.devcluster.market import Ask, NodePlan, Offer, Room

SHAPE = topology.parse(
    """
pools:
  - name: cheap
    provider: gke
    price: 0.2
    markets: [{zone: a, capacity: 2}, {zone: b, capacity: 2}]
  - name: dear
    provider: karpenter
    price: 2.0
    gpu: {count: 2}
    markets: [{zone: a, capacity: 2, price: 1.5}]
""",
    "test",
)
OFFERS, CAPACITY = market.offers_of(SHAPE)
CHEAP_A, CHEAP_B, DEAR_A = Market("cheap", "a"), Market("cheap", "b"), Market("dear", "a")
EVERYTHING = [{"operator": "Exists"}]


def pod(name: str = "p", gpus: int = 1, **spec: object) -> Json:
    limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    return {
        "metadata": {"uid": name, "name": name},
        "spec": {
            "containers": [{"name": "c", "resources": {"limits": limits}}],
            "tolerations": EVERYTHING,
            **spec,
        },
    }


def ask(name: str = "p", gpus: int = 1, **spec: object) -> Ask:
    return market.ask_of(pod(name, gpus, **spec))


def plan(
    asks: list[Ask], rooms: list[Room] | None = None, left: Mapping[Market, int] = CAPACITY
) -> NodePlan:
    return market.plan(asks, rooms or [], OFFERS, left)


def room(name: str, where: Market, *, booting: bool = False, gpus: float | None = None) -> Room:
    free = dict(OFFERS[where].room)
    if gpus is not None:
        free["nvidia.com/gpu"] = gpus
    return Room(name, where, free, booting)


def test_one_pending_pod_launches_the_cheapest_node_that_fits() -> None:
    assert plan([ask()]).launch == (CHEAP_A,)


def test_a_pod_that_names_its_market_gets_a_node_there() -> None:
    selector = {"karpenter.sh/nodepool": "dear"}
    assert plan([ask(nodeSelector=selector)]).launch == (DEAR_A,)


def test_a_pod_served_by_a_booting_node_launches_no_other() -> None:
    result = plan([ask()], [room("n1", CHEAP_A, booting=True)])
    assert result.launch == ()
    assert result.awaited == {"n1"}
    assert result.cancel == ()


def test_a_booting_node_that_nobody_waits_for_is_cancelled() -> None:
    assert plan([], [room("n1", CHEAP_A, booting=True)]).cancel == ("n1",)


def test_a_free_node_is_preferred_to_a_booting_one_which_is_cancelled() -> None:
    rooms = [room("boots", CHEAP_A, booting=True), room("free", CHEAP_A)]
    result = plan([ask()], rooms)
    assert result.awaited == {"free"}
    assert result.cancel == ("boots",)


def test_a_full_node_does_not_count() -> None:
    assert plan([ask()], [room("full", CHEAP_A, gpus=0)]).launch == (CHEAP_A,)


def test_two_pods_share_a_node_with_two_gpus() -> None:
    selector = {"karpenter.sh/nodepool": "dear"}
    assert plan([ask(f"p{n}", nodeSelector=selector) for n in (1, 2)]).launch == (DEAR_A,)


def test_without_capacity_nothing_is_launched_and_the_pod_is_named() -> None:
    result = plan([ask("starved")], left=dict.fromkeys(CAPACITY, 0))
    assert result.launch == ()
    assert result.refused == ("starved",)


def test_a_pod_that_fits_no_market_is_not_refused_for_capacity() -> None:
    result = plan([ask(nodeSelector={"no": "such"})])
    assert (result.launch, result.refused) == ((), ())


def test_a_pod_without_gpu_never_launches_a_gpu_node() -> None:
    assert plan([ask(gpus=0)]).launch == (Market("cpu", "a"),)


def test_untolerated_taints_keep_a_pod_away() -> None:
    assert plan([ask(tolerations=[])]).launch == ()


@pytest.mark.parametrize(
    ("toleration", "fits"),
    [
        ({"key": "k", "operator": "Exists"}, True),
        ({"key": "k", "operator": "Equal", "value": "v"}, True),
        ({"key": "k", "value": "v", "effect": "NoSchedule"}, True),
        ({"key": "k", "value": "other"}, False),
        ({"key": "k", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"operator": "Exists"}, True),
        ({"key": "z", "operator": "Exists"}, False),
    ],
)
def test_tolerations_match_as_the_scheduler_matches_them(toleration: Json, *, fits: bool) -> None:
    offer = OFFERS[CHEAP_A]
    tainted = Offer(
        market=offer.market,
        labels=offer.labels,
        taints=({"key": "k", "value": "v", "effect": "NoSchedule"},),
        room=offer.room,
        boot_delay_s=0,
        idle_after_s=0,
        micro_usd_per_h=0,
        provider="generic",
    )
    assert market.fits(ask(tolerations=[toleration]), tainted, tainted.room) is fits


def test_zone_affinity_chooses_the_zone() -> None:
    expression = {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["b"]}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    assert plan([ask(affinity=affinity)]).launch == (CHEAP_B,)


def test_a_volume_in_a_zone_chooses_the_zone() -> None:
    expression = {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["b"]}
    volume = {"terms": [{"matchExpressions": [expression]}]}
    assert plan([market.ask_of(pod(), (volume,))]).launch == (CHEAP_B,)


def test_a_pod_bigger_than_any_node_launches_none() -> None:
    big = pod()
    big["spec"]["containers"][0]["resources"]["requests"] = {"memory": "9Ti"}
    assert plan([market.ask_of(big)]).launch == ()


@given(
    pending=st.integers(0, 12),
    booting=st.integers(0, 4),
    left_a=st.integers(-2, 4),
    left_b=st.integers(-2, 4),
)
def test_never_more_nodes_than_pods_wait_for_nor_than_there_is_capacity(
    pending: int, booting: int, left_a: int, left_b: int
) -> None:
    rooms = [room(f"b{n}", CHEAP_A, booting=True) for n in range(booting)]
    left = {**dict.fromkeys(CAPACITY, 0), CHEAP_A: left_a, CHEAP_B: left_b}
    result = plan([ask(f"p{n}") for n in range(pending)], rooms, left)
    assert len(result.launch) + booting - len(result.cancel) <= max(pending, 0)
    assert result.launch.count(CHEAP_A) <= max(left_a, 0)
    assert result.launch.count(CHEAP_B) <= max(left_b, 0)
    assert len(result.refused) == max(0, pending - booting - max(left_a, 0) - max(left_b, 0))


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", 0.5), ("2", 2.0), ("1Gi", 2.0**30), ("1k", 1000.0), ("1.5G", 1.5e9), (3, 3.0)],
)
def test_quantities_are_numbers(text: str | int, value: float) -> None:
    assert market.quantity(text) == value


def test_limits_count_as_requests_and_init_containers_only_by_their_largest() -> None:
    body = pod(gpus=0)
    body["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "2"}}
    body["spec"]["containers"].append({"name": "d", "resources": {"requests": {"cpu": "500m"}}})
    body["spec"]["initContainers"] = [{"name": "i", "resources": {"requests": {"cpu": "3"}}}]
    assert market.needs(body) == {"pods": 1, "cpu": 3.0}
