"""Events become keys: the right tiers, urgent where somebody waits, nothing for echoes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import kopf

from spotinference.api import names
from spotinference.api.kinds import DEPLOYMENT, LEASE, NODE, POD, POOL, TIER, Kind
from spotinference.controller import handlers, watching
from spotinference.controller.handlers import WATCHED, Router
from spotinference.controller.queue import WorkQueue
from spotinference.core.observed import TierRef
from tests.support.virtual_time import VirtualClock, virtual_time
from tests.unit.controller.objects import REF, deployment, engine_pod, obj, tier
from tests.unit.controller.world import Shell


class Bench:
    """A router whose queue only notes what was added."""

    def __init__(self, clock: VirtualClock) -> None:
        self.shell = Shell(clock)
        self.looked: list[TierRef] = []
        self.relisted: list[Kind] = []

        async def work(ref: TierRef) -> None:
            self.looked.append(ref)

        self.queue = WorkQueue(work)
        self.queue.open()
        self.router = Router(
            self.shell.store,
            self.queue,
            self.shell.demand,
            self.shell.latencies,
            self.relisted.append,
        )
        self.task = asyncio.create_task(self.queue.run())

    async def after(self, act: Callable[[], None]) -> list[TierRef]:
        """The tiers looked at because of this."""
        self.looked.clear()
        act()
        await asyncio.sleep(1)
        return list(self.looked)


@virtual_time
async def test_nothing_is_decided_while_the_first_lists_come_in(clock: VirtualClock) -> None:
    it = Bench(clock)
    assert await it.after(lambda: it.router.listed(TIER, tier())) == []
    assert not it.router.synced
    assert await it.after(lambda: it.router.happened(TIER, None, tier())) == [REF]
    assert it.router.synced


@virtual_time
async def test_a_child_concerns_the_tier_in_its_label(clock: VirtualClock) -> None:
    it = Bench(clock)
    changed = deployment(1)
    assert await it.after(lambda: it.router.happened(DEPLOYMENT, "MODIFIED", changed)) == [REF]


@virtual_time
async def test_the_echo_of_our_own_write_is_not_looked_at(clock: VirtualClock) -> None:
    it = Bench(clock)
    it.shell.store.wrote(DEPLOYMENT, deployment(1, version=5))
    for version, looked in ((5, []), (4, []), (6, [REF])):
        body = deployment(1, version=version)
        act = lambda body=body: it.router.happened(DEPLOYMENT, "MODIFIED", body)  # noqa: E731
        assert await it.after(act) == looked


@virtual_time
async def test_a_node_concerns_the_tiers_with_pods_on_it_and_only_when_it_matters(
    clock: VirtualClock,
) -> None:
    it = Bench(clock)
    it.router.happened(POD, "ADDED", engine_pod(node="node-1"))
    it.router.happened(NODE, "ADDED", obj(NODE, "node-1", namespace=None))
    it.router.happened(NODE, "ADDED", obj(NODE, "node-2", namespace=None))
    await asyncio.sleep(1)
    beat = obj(NODE, "node-1", namespace=None, version=2)
    assert await it.after(lambda: it.router.happened(NODE, "MODIFIED", beat)) == []
    warned = obj(NODE, "node-1", namespace=None, version=3, spec={"taints": [{"key": "x"}]})
    assert await it.after(lambda: it.router.happened(NODE, "MODIFIED", warned)) == [REF]
    assert await it.after(lambda: it.router.happened(NODE, "DELETED", warned)) == [REF]
    other = obj(NODE, "node-2", namespace=None, version=9, spec={"unschedulable": True})
    assert await it.after(lambda: it.router.happened(NODE, "MODIFIED", other)) == []


@virtual_time
async def test_a_pool_concerns_the_tiers_that_name_it(clock: VirtualClock) -> None:
    it = Bench(clock)
    it.router.happened(TIER, "ADDED", tier())
    await asyncio.sleep(1)
    for name, looked in (("spot", [REF]), ("other", [])):
        pool = obj(POOL, name, namespace=None)
        act = lambda pool=pool: it.router.happened(POOL, "ADDED", pool)  # noqa: E731
        assert await it.after(act) == looked


@virtual_time
async def test_new_demand_is_looked_at_and_its_end_too(clock: VirtualClock) -> None:
    it = Bench(clock)
    labels = names.tier_labels(REF.name, names.ROLE_DEMAND)
    lease = obj(LEASE, "demo-demand-gw", labels=labels, spec={})
    assert await it.after(lambda: it.router.happened(LEASE, "ADDED", lease)) == [REF]
    assert await it.after(lambda: it.router.happened(LEASE, "DELETED", lease)) == [REF]


@virtual_time
async def test_a_list_of_kopf_after_the_first_is_checked_by_one_of_ours(
    clock: VirtualClock,
) -> None:
    it = Bench(clock)
    it.router.happened(POD, None, engine_pod())
    assert it.relisted == [POD]
    it.router.happened(POD, "MODIFIED", engine_pod(version=2))
    assert it.relisted == [POD]


def test_children_pods_and_demand_are_selected_by_the_server() -> None:
    settings = watching.settings(70.0)
    chosen = dict(settings.watching.label_selectors)
    assert len(chosen) == len([kind for kind, selector in WATCHED.items() if selector])
    assert not WATCHED[NODE], "nodes carry no label of ours"
    assert names.ROLE_DEMAND in WATCHED[LEASE], "or every kubelet heartbeat would arrive"


def test_kopf_writes_nothing_of_its_own() -> None:
    settings = watching.settings(70.0)
    assert not settings.posting.enabled
    assert settings.peering.standalone
    assert settings.scanning.disabled
    registry = kopf.OperatorRegistry()
    handlers.register(registry, None)  # type: ignore[arg-type]  # never called
    assert not registry._spawning.get_all_handlers(), "timers and daemons force finalizers"
    assert not registry._changing.get_all_handlers(), "change handlers annotate the object"
