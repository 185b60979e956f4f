"""The operator killed, stopped, doubled, refused: nothing is lost, doubled or left behind."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from spotinference.api.kinds import (
    CLUSTER_ROLE,
    CRD,
    DEPLOYMENT,
    JOB,
    LEASE,
    NETWORK_POLICY,
    NODE,
    PDB,
    POD,
    PVC,
    SERVICE,
    SERVICE_ACCOUNT,
    TIER,
    Json,
)
from spotinference.clients.leader import LeaseTimes
from spotinference.controller.pools import EVERY_S
from tests.cluster.operators import (
    Operator,
    announced,
    asking,
    children,
    condition,
    drop_tier,
    leading,
    make_tier,
    operator,
    phase,
    scale_writes,
    status,
    warm,
)
from tests.support.cluster import LiveCluster, Started, connect, start
from tests.support.eventually import eventually

pytestmark = pytest.mark.cluster

TAKEOVER_S = LeaseTimes().duration_s + 45
"""A machine that builds beside the tests takes its time to start a process."""


@pytest.fixture(scope="module")
def bare_process(cluster_home: Path) -> Iterator[Started]:
    """A cluster without operator and gateway: the tests run their own."""
    started = start(operator=False, gateway=False)
    yield started
    started.stop()


@pytest.fixture
async def bare(bare_process: Started) -> AsyncIterator[LiveCluster]:
    async with connect(bare_process) as live:
        yield live


async def leader(cluster: LiveCluster) -> str:
    lease = await cluster.kube.get(LEASE, "spotinference-operator", "spotinference")
    return str(lease["spec"].get("holderIdentity") or "")


async def test_sigterm_ends_it_with_0_in_time_and_gives_the_lease_away(bare: LiveCluster) -> None:
    with operator(bare, "polite") as it:
        await leading(it)
        assert (await leader(bare)).startswith("polite")
        it.send(signal.SIGTERM)
        assert await it.exit_code(10) == 0
        assert await leader(bare) == ""


async def test_sigterm_before_it_leads_ends_it_with_0_too(bare: LiveCluster) -> None:
    with operator(bare, "first") as first:
        await leading(first)
        with operator(bare, "second") as second:
            await announced(second)
            second.send(signal.SIGTERM)
            assert await second.exit_code(10) == 0
        assert (await leader(bare)).startswith("first")


async def test_a_dead_operator_blocks_no_deletion_and_makes_nothing_again(
    bare: LiveCluster,
) -> None:
    ns = await bare.namespace("fault-kill")
    with operator(bare) as it:
        await leading(it)
        await make_tier(bare, "orphan", ns)
        await warm(bare, "orphan", ns)
        it.send(signal.SIGKILL)
        await it.exit_code(5)
    await drop_tier(bare, "orphan", ns)

    async def gone() -> bool:
        for kind in (DEPLOYMENT, SERVICE, SERVICE_ACCOUNT, PDB, NETWORK_POLICY, JOB, POD):
            left = await children(bare, kind, "orphan", ns)
            assert not left, [item["metadata"]["name"] for item in left]
        return True

    await eventually(gone, 30, "all children are collected without an operator")
    mark = bare.mark()
    with operator(bare) as it:
        await leading(it)
        # It has looked at everything once another tier is through.
        await make_tier(bare, "probe", ns)
        await warm(bare, "probe", ns)
        assert await gone()
    made = [r for r in bare.audit(mark, user="operator") if "orphan" in r.name]
    assert made == []
    assert await children(bare, PVC, "orphan", ns), "the retained cache is still there"
    await drop_tier(bare, "probe", ns)


async def test_a_kill_in_the_middle_of_a_wake_is_made_good_by_the_next_one(
    bare: LiveCluster,
) -> None:
    ns = await bare.namespace("fault-wake")
    with operator(bare) as it:
        await leading(it)
        await make_tier(bare, "halfway", ns)
        await warm(bare, "halfway", ns)
        mark = bare.mark()
        async with asking(bare, "halfway", ns):
            await phase(bare, "halfway", ns, "Waking", 20)
            it.send(signal.SIGKILL)
            await it.exit_code(5)
            with operator(bare) as successor:
                await leading(successor, TAKEOVER_S)
                await phase(bare, "halfway", ns, "Ready", 60)
    assert len(scale_writes(bare.audit(mark), "halfway")) == 1, "woken once"
    await drop_tier(bare, "halfway", ns)


async def test_of_two_operators_one_writes_and_the_other_takes_over_when_it_is_killed(
    bare: LiveCluster,
) -> None:
    ns = await bare.namespace("fault-two")
    with operator(bare, "one") as one:
        await leading(one)
        with operator(bare, "two") as two:
            await announced(two)
            await make_tier(bare, "shared", ns)
            await warm(bare, "shared", ns)
            await phase(bare, "shared", ns, "Asleep")
            assert one.writes > 0
            assert two.writes == 0
            one.send(signal.SIGKILL)
            await leading(two, TAKEOVER_S)
            async with asking(bare, "shared", ns):
                await phase(bare, "shared", ns, "Ready", 60)
            assert two.writes > 0
    await drop_tier(bare, "shared", ns)


async def test_a_stopped_leader_writes_nothing_after_it_wakes_up(bare: LiveCluster) -> None:
    ns = await bare.namespace("fault-stop")
    with operator(bare, "sleeper") as sleeper:
        await leading(sleeper)
        with operator(bare, "watchman") as watchman:
            await announced(watchman)
            await make_tier(bare, "fenced", ns)
            await warm(bare, "fenced", ns)
            await phase(bare, "fenced", ns, "Asleep")
            await at_rest(sleeper, 1)  # events follow the status that was waited for
            before = sleeper.writes
            sleeper.send(signal.SIGSTOP)
            try:
                await leading(watchman, TAKEOVER_S)
                async with asking(bare, "fenced", ns):
                    await phase(bare, "fenced", ns, "Ready", 60)
                    # While it slept the world changed; it sees all of it at once now.
                    sleeper.send(signal.SIGCONT)
                    await eventually(lambda: not sleeper.leads, 10, "the sleeper knows")
                await phase(bare, "fenced", ns, "Asleep", 60)
            finally:
                sleeper.send(signal.SIGCONT)
            assert sleeper.writes == before
            assert watchman.leads
    await drop_tier(bare, "fenced", ns)


async def test_without_its_crds_it_exits_with_a_sentence(bare: LiveCluster) -> None:
    crd = await bare.kube.get(CRD, "gpupools.spotinference.dev")
    pools = await bare.kubectl("get", "gpupools", "-o", "yaml")
    await bare.kube.delete(CRD, "gpupools.spotinference.dev")

    async def absent() -> bool:
        code, _, _ = await bare.try_kubectl("get", "crd", "gpupools.spotinference.dev")
        return code != 0

    await eventually(absent, 30, "the CRD is gone")
    try:
        with operator(bare) as it:
            assert await it.exit_code(30) == 1
            assert it.said("gpupools.spotinference.dev does not exist: install it with")
    finally:
        for field in ("resourceVersion", "uid", "managedFields", "creationTimestamp"):
            crd["metadata"].pop(field, None)
        crd.pop("status", None)
        await bare.kube.apply(CRD, crd)
        await eventually(lambda: restored(bare, pools), 30, "the pools are back")


async def restored(cluster: LiveCluster, pools: str) -> bool:
    code, _, _ = await cluster.try_kubectl("apply", "-f", "-", stdin=pools)
    return code == 0


async def take_rights(cluster: LiveCluster, resource: str, verbs: set[str]) -> list[Json]:
    """Removes verbs on a resource from the operator's ClusterRole; answers the rules before."""
    role = await cluster.kube.get(CLUSTER_ROLE, "spotinference-operator")
    before: list[Json] = role["rules"]
    after: list[Json] = []
    for rule in before:
        if resource in rule["resources"]:
            others = [name for name in rule["resources"] if name != resource]
            if others:
                after.append({**rule, "resources": others})
            left = [verb for verb in rule["verbs"] if verb not in verbs]
            after.append({**rule, "resources": [resource], "verbs": left})
        else:
            after.append(rule)
    await set_rights(cluster, after)
    return before


async def set_rights(cluster: LiveCluster, rules: list[Json]) -> None:
    await cluster.kube.merge_patch(CLUSTER_ROLE, "spotinference-operator", None, {"rules": rules})


async def test_without_a_watch_right_it_exits_and_names_it(bare: LiveCluster) -> None:
    rules = await take_rights(bare, "nodes", {"watch"})
    try:
        with operator(bare) as it:
            assert await it.exit_code(30) == 1
            assert it.said("may not watch nodes"), it.log.read_text()
    finally:
        await set_rights(bare, rules)


async def test_a_write_right_lost_while_running_is_a_condition_that_names_it(
    bare: LiveCluster,
) -> None:
    ns = await bare.namespace("fault-rights")
    with operator(bare) as it:
        await leading(it)
        rules = await take_rights(bare, "networkpolicies", {"create", "patch"})
        try:
            await make_tier(bare, "refused", ns)

            async def named() -> bool:
                why = condition(await status(bare, "refused", ns), "Degraded")
                assert why.get("reason") == "Forbidden", why
                assert "networkpolicies" in why["message"]
                return True

            await eventually(named, 15, "the condition names verb and resource")
            await warm(bare, "refused", ns)  # everything else goes on
        finally:
            await set_rights(bare, rules)
        # Looked at again by any event.
        await bare.kube.merge_patch(TIER, "refused", ns, {"spec": {"scaling": {"maxReplicas": 3}}})

        async def healed() -> bool:
            why = condition(await status(bare, "refused", ns), "Degraded")
            assert why.get("status") == "False", why
            return True

        await eventually(healed, 15, "the condition clears")
    await drop_tier(bare, "refused", ns)


async def test_a_service_of_somebody_else_is_left_alone_and_named(bare: LiveCluster) -> None:
    ns = await bare.namespace("fault-name")
    theirs: Json = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "taken-engine", "namespace": ns},
        "spec": {"ports": [{"port": 80}], "selector": {"app": "theirs"}},
    }
    await bare.kube.apply(SERVICE, theirs)
    with operator(bare) as it:
        await leading(it)
        await make_tier(bare, "taken", ns)

        async def named() -> bool:
            why = condition(await status(bare, "taken", ns), "Degraded")
            assert why.get("reason") == "NameConflict", why
            return True

        await eventually(named, 15, "the conflict is named")
        live = await bare.kube.get(SERVICE, "taken-engine", ns)
        assert live["spec"]["selector"] == {"app": "theirs"}
    await drop_tier(bare, "taken", ns)


async def test_fifty_tiers_at_rest_cost_not_one_write(bare: LiveCluster) -> None:
    ns = await bare.namespace("fault-rest")
    names = [f"rest-{number}" for number in range(50)]
    with operator(bare) as it:
        await leading(it)
        for name in names:
            await make_tier(bare, name, ns, model={"source": "pvc://models/tiny"})

        async def asleep() -> bool:
            tiers = (await bare.kube.list(TIER, ns)).items
            waiting = [
                t["metadata"]["name"]
                for t in tiers
                if (t.get("status") or {}).get("phase") != "Asleep"
            ]
            assert not waiting, waiting
            return True

        async def no_gpu_node() -> bool:
            """Nodes that other tests left go away by themselves, and a pool's status says so."""
            nodes = (await bare.kube.list(NODE)).items
            left = [n["metadata"]["name"] for n in nodes if is_gpu(n)]
            assert not left, left
            return True

        await eventually(asleep, 120, "fifty tiers sleep")
        await eventually(no_gpu_node, 120, "empty GPU nodes are gone")
        await at_rest(it)
        mark = bare.mark()
        await asyncio.sleep(20)  # the thing observed is that nothing happens
        wrote = [
            r
            for r in bare.audit(mark, user="operator")
            if not (r.resource == "leases" and r.name == "spotinference-operator")
        ]
        assert wrote == []
        assert bare.audit(mark, user="operator"), "the leader Lease is renewed"
    await asyncio.gather(*(drop_tier(bare, name, ns) for name in names))


def is_gpu(node: Json) -> bool:
    return "nvidia.com/gpu" in node.get("status", {}).get("capacity", {})


async def at_rest(it: Operator, for_s: float = 2 * EVERY_S) -> None:
    """Until the number of writes stands still; by default until the pools' statuses were compared."""
    last, since = it.writes, asyncio.get_running_loop().time()

    async def still() -> bool:
        nonlocal last, since
        now = asyncio.get_running_loop().time()
        if it.writes != last:
            last, since = it.writes, now
        return now - since > for_s

    await eventually(still, 60, "the operator comes to rest")
