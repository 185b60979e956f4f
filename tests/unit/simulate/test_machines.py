"""The virtual cluster: nodes are launched, boot, load, are taken back, and are given up."""

from __future__ import annotations

from random import Random

from spotinference.core.observed import Market
from spotinference.simulate.machines import NODE_IDLE_S, Machines

A, B = Market("spot", "a"), Market("spot", "b")


def machines(notice_s: float = 0.0, **capacity: int) -> Machines:
    return Machines(
        boot_s=60,
        load_s=30,
        notice_s={"spot": notice_s},
        random=Random(0),
        capacity={Market("spot", zone): n for zone, n in capacity.items()},
    )


def run(m: Machines, begin: float, end: float, step: float = 10) -> None:
    now = begin
    while now <= end:
        m.step(now)
        now += step


def serving(m: Machines) -> int:
    return sum(p.serves for p in m.pods.values())


def test_a_replica_serves_after_boot_and_load() -> None:
    m = machines()
    m.sizes[A] = 2
    run(m, 0, 80)
    assert (m.launches, serving(m)) == (2, 0)
    m.step(90)
    assert serving(m) == 2


def test_a_market_without_capacity_refuses_once_per_pod_and_is_asked_again() -> None:
    m = machines(a=0)
    m.sizes[A] = 1
    run(m, 0, 50)
    assert (m.launches, m.refusals) == (0, 1)
    m.capacity[A] = 1
    run(m, 60, 150)
    assert (m.launches, serving(m)) == (1, 1)


def test_what_is_above_capacity_is_taken_back_booting_nodes_first() -> None:
    m = machines(a=2)
    m.sizes[A] = 1
    run(m, 0, 90)
    m.sizes[A] = 2
    m.step(100)
    m.capacity[A] = 1
    m.step(110)
    assert m.reclaimed == 1
    assert serving(m) == 1
    m.capacity[A] = 0
    m.step(120)
    assert (m.reclaimed, serving(m)) == (2, 0)
    assert [p.lost for p in m.pods.values() if p.ready_at] == [True]


def test_with_a_notice_the_node_stays_to_its_deadline() -> None:
    m = machines(notice_s=30, a=1)
    m.sizes[A] = 1
    run(m, 0, 90)
    m.capacity[A] = 0
    m.step(100)
    assert serving(m) == 1
    assert [n.gone_at for n in m.nodes.values()] == [130]
    m.step(130)
    assert (serving(m), len(m.nodes)) == (0, 0)


def test_the_seed_alone_chooses_what_is_reclaimed() -> None:
    def survivors(seed: int) -> list[str]:
        m = machines(a=8)
        m.random = Random(seed)
        m.sizes[A] = 8
        run(m, 0, 90)
        m.capacity[A] = 4
        m.step(100)
        return sorted(m.nodes)

    assert survivors(1) == survivors(1)
    assert len({tuple(survivors(seed)) for seed in range(6)}) > 1


def test_an_empty_node_is_paid_for_a_while_and_then_goes() -> None:
    m = machines()
    m.sizes[A] = 1
    run(m, 0, 90)
    m.sizes[A] = 0
    run(m, 100, 110 + NODE_IDLE_S - 10)
    assert len(m.pods) == 0
    assert len(m.nodes) == 1
    run(m, 110 + NODE_IDLE_S, 120 + NODE_IDLE_S)
    assert len(m.nodes) == 0


def test_a_pod_that_frees_its_node_leaves_it_to_the_next_of_its_market_only() -> None:
    m = machines()
    m.sizes[A] = 1
    run(m, 0, 90)
    m.sizes = {A: 0, B: 1}
    run(m, 100, 110)
    m.sizes = {A: 1, B: 1}
    run(m, 120, 150)
    assert m.launches == 2
    assert serving(m) == 1


def test_pods_that_wait_go_before_those_that_serve() -> None:
    m = machines(a=1)
    m.sizes[A] = 2
    run(m, 0, 90)
    assert serving(m) == 1
    m.sizes[A] = 1
    m.step(100)
    assert serving(m) == 1
    assert len(m.pods) == 1
