"""Event to replacement: many nodes get a notice at once, in a cluster of a thousand.

    python -m benchmarks.notices [--nodes 1000] [--notices 50] [--rounds 3] [--json]

A real control plane; the nodes and their kubelets are played here (Node objects, Leases, pods that say
they are ready, one engine's /metrics for all of them). Each tier has one replica. The controllers are
stopped while it counts: they are no part of the way, and here they would share its two cores.
Measured per tier, by the API server's own audit clock: from the moment the write of the notice was
answered to the moment the operator's scale write of the replacement was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import yaml
from aiohttp import web

from benchmarks.report import Report
from spotinference import errors
from spotinference.api import names, times
from spotinference.api.kinds import LEASE, NODE, POD, POOL, PVC, Json
from spotinference.clients.kube import Kube
from spotinference.clients.reflector import Reflector
from spotinference.core.providers import IMPENDING_TAINT
from spotinference.devcluster.client import percentile
from spotinference.devcluster.handle import ClusterHandle, cluster

ZONES = ("zone-a", "zone-b")
TARGET_S = 0.25
TOPOLOGY = """
pools:
  - {name: unused, provider: generic, markets: [{zone: zone-a, capacity: 0}]}
"""
FARM = {
    "apiVersion": POOL.api_version,
    "kind": POOL.kind,
    "metadata": {"name": "farm"},
    "spec": {
        "capacityType": "spot",
        "provider": "auto",
        "nodeSelector": {"farm": "yes"},
        "zones": list(ZONES),
        "noticeSeconds": 120,
    },
}
CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: weights, namespace: default}
spec:
  accessModes: [ReadWriteMany]
  storageClassName: shared
  resources: {requests: {storage: 1Gi}}
"""
TIER = """
apiVersion: spotinference.dev/v1alpha1
kind: InferenceTier
metadata: {name: NAME, namespace: default}
spec:
  model: {source: pvc://weights/model}
  placement: {pools: [farm]}
  scaling: {minReplicas: 1, maxReplicas: 2}
  resources: {cpu: 100m, memory: 128Mi, sharedMemory: 16Mi}
  cache: {size: 1Gi, storageClassName: shared, retain: false}
"""
ENGINE_ADDRESS = "127.99.0.1"
METRICS = "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:request_success_total 1\n"
RENEW_S = 8.0
"""Kubelets renew each 10 s. Only nodes that may get a pod do here: nobody asks for the others'."""
AT_ONCE = 8
REST_S = 5.0
"""Until what the last step left behind is done."""
RENEW_AT_ONCE = 16
ANSWER_S = 30.0
"""A notice that is not answered by then counts as not answered."""


class Farm:
    """A thousand kubelets."""

    def __init__(self, kube: Kube) -> None:
        self.kube = kube
        self._beating: dict[str, float] = {}
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def make(self, numbers: range, *, beating: bool) -> None:
        """Nodes in all zones by turns; only those that beat stay ready while controllers look."""
        async with asyncio.TaskGroup() as group:
            for number in numbers:
                name = f"farm-{number:04d}"
                group.create_task(self._node(name, ZONES[number % len(ZONES)]))
                if beating:
                    self._beating[name] = asyncio.get_running_loop().time()

    async def _node(self, name: str, zone: str) -> None:
        amounts = {"cpu": "8", "memory": "32Gi", "pods": "10", "nvidia.com/gpu": "1"}
        now = times.to_text(datetime.now(UTC))
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
        ready |= {"lastTransitionTime": now, "lastHeartbeatTime": now}
        labels = {"farm": "yes", names.ZONE_LABEL: zone, "kubernetes.io/hostname": name}
        body: Json = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
        body["metadata"]["labels"] = labels
        status = {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}
        async with self._gate:
            await self.kube.apply(NODE, body)
            await self.kube.apply(NODE, body | {"status": status}, subresource="status")
            lease: Json = {"apiVersion": LEASE.api_version, "kind": LEASE.kind}
            lease["metadata"] = {"name": name, "namespace": "kube-node-lease"}
            lease["spec"] = {"holderIdentity": name, "leaseDurationSeconds": 40}
            await self.kube.apply(LEASE, lease)
            await self._renew(name)

    async def _renew(self, name: str) -> None:
        renewed = {"spec": {"renewTime": times.to_micro_text(datetime.now(UTC))}}
        with contextlib.suppress(errors.Retryable):
            await self.kube.merge_patch(LEASE, name, "kube-node-lease", renewed)

    async def beat(self) -> None:
        """Renewals, for as long as it runs."""
        while True:
            now = asyncio.get_running_loop().time()
            ages = sorted((at, name) for name, at in self._beating.items())
            due = [name for at, name in ages if now - at >= RENEW_S][:RENEW_AT_ONCE]
            await asyncio.gather(*(self._renew(name) for name in due))
            self._beating.update(dict.fromkeys(due, now))
            if not due:
                await asyncio.sleep(0.2)

    async def play_pods(self) -> None:
        """Pods that were bound become ready; pods that are deleted go at once."""
        async with asyncio.TaskGroup() as group:

            def changed(_: Json | None, pod: Json | None) -> None:
                if pod is not None and pod["spec"].get("nodeName", "").startswith("farm-"):
                    group.create_task(self._pod(pod))

            selector = f"{names.LABEL_ROLE}={names.ROLE_ENGINE}"
            await Reflector(self.kube, POD, label_selector=selector, on_change=changed).run()

    async def _pod(self, pod: Json) -> None:
        meta = pod["metadata"]
        name, namespace, uid = meta["name"], meta["namespace"], meta["uid"]
        try:
            if meta.get("deletionTimestamp"):
                await self.kube.delete(POD, name, namespace, uid=uid, grace_s=0)
            elif pod.get("status", {}).get("phase") != "Running":
                await self.kube.merge_patch(
                    POD, name, namespace, {"status": _running()}, subresource="status"
                )
        except (errors.Retryable, errors.NotFound):
            return


def _running() -> Json:
    now = times.to_text(datetime.now(UTC))
    kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    container = {
        "name": names.ENGINE_CONTAINER,
        "image": "engine",
        "imageID": "engine",
        "ready": True,
        "started": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": now}},
    }
    return {
        "phase": "Running",
        "podIP": ENGINE_ADDRESS,
        "podIPs": [{"ip": ENGINE_ADDRESS}],
        "startTime": now,
        "conditions": [{"type": k, "status": "True", "lastTransitionTime": now} for k in kinds],
        "containerStatuses": [container],
    }


@contextlib.asynccontextmanager
async def engine() -> AsyncIterator[None]:
    """What every played engine says of its load."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=METRICS)

    app = web.Application()
    app.router.add_get("/metrics", page)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, ENGINE_ADDRESS, names.ENGINE_PORT).start()
    try:
        yield
    finally:
        await runner.cleanup()


async def give_notice(bed: ClusterHandle, tiers: list[str]) -> dict[str, float]:
    """All nodes of these tiers at once; per tier the seconds until its replacement was asked for."""
    places: dict[str, tuple[str, str]] = {}
    for tier in tiers:
        ready = [
            p for p in await bed.engine_pods(tier) if not p["metadata"].get("deletionTimestamp")
        ]
        labels = ready[0]["metadata"]["labels"]
        places[tier] = (ready[0]["spec"]["nodeName"], labels[names.LABEL_ZONE])
    mark = bed.audit_mark()
    taint = {"key": IMPENDING_TAINT, "effect": "NoSchedule"}
    patch = {"spec": {"taints": [taint]}}
    await asyncio.gather(
        *(bed.kube.merge_patch(NODE, node, None, patch) for node, _ in places.values())
    )
    other = dict(zip(ZONES, reversed(ZONES), strict=True))
    targets = {
        names.engine_deployment(tier, "farm", other[zone]): tier
        for tier, (_, zone) in places.items()
    }
    waits: dict[str, float] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ANSWER_S):
            while len(waits) < len(tiers):
                await asyncio.sleep(0.5)
                waits = _waits(Path(bed.state.audit_log), mark, places, targets)
    return waits


def cpu_s(bed: ClusterHandle, process: str) -> float:
    """Processor time that one process of the cluster has used so far."""
    stat = Path(f"/proc/{bed.state.pids[process]}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def _waits(
    log: Path, mark: int, places: dict[str, tuple[str, str]], targets: dict[str, str]
) -> dict[str, float]:
    tier_of = {node: tier for tier, (node, _) in places.items()}
    said: dict[str, datetime] = {}
    scaled: dict[str, datetime] = {}
    with log.open("rb") as file:
        file.seek(mark)
        lines = [line for line in file.read().splitlines() if line.endswith(b"}")]
    for event in map(json.loads, lines):
        ref = event.get("objectRef") or {}
        if event["verb"] != "patch" or ref.get("subresource") not in {None, "scale"}:
            continue
        at = times.parse(event["stageTimestamp"])
        name, user = ref.get("name", ""), event["user"]["username"]
        if ref.get("resource") == "nodes" and name in tier_of:
            said.setdefault(tier_of[name], at)
        elif ref.get("resource") == "deployments" and name in targets and "operator" in user:
            scaled.setdefault(targets[name], at)
    return {tier: (scaled[tier] - said[tier]).total_seconds() for tier in said if tier in scaled}


async def settled(bed: ClusterHandle, tiers: list[str]) -> None:
    """Every tier has exactly one ready replica, and nothing else under way."""
    for tier in tiers:
        await bed.tier_until(
            tier,
            lambda t: (
                t.get("status", {}).get("readyReplicas") == 1
                and t["status"].get("replicas") == 1
                and t["status"].get("phase") == "Ready"
            ),
            deadline_s=300,
        )


async def again(bed: ClusterHandle, tiers: list[str]) -> None:
    """The replacements serve, and the machines that went are back as new ones."""
    await bed.dev("process", "controller-manager", "start")
    await settled(bed, tiers)
    await renew_nodes(bed)
    await bed.dev("process", "controller-manager", "stop")


async def renew_nodes(bed: ClusterHandle) -> None:
    """The reclaimed nodes are back as new ones: no taint."""
    for node in (await bed.kube.list(NODE)).items:
        if any(t["key"] == IMPENDING_TAINT for t in node["spec"].get("taints") or ()):
            await bed.kube.merge_patch(
                NODE, node["metadata"]["name"], None, {"spec": {"taints": None}}
            )


async def measure(nodes: int, notices: int, rounds: int) -> Report:
    report = Report(f"{notices} notices at once in a cluster of {nodes} nodes")
    every: list[float] = []
    async with cluster("bench-notices", topology=TOPOLOGY) as bed, engine():
        farm = Farm(bed.kube)
        few = min(nodes, 3 * notices)
        await bed.kube.apply(POOL, FARM)
        await bed.kube.apply(PVC, yaml.safe_load(CLAIM))
        await farm.make(range(few), beating=True)
        tasks = [asyncio.create_task(farm.beat()), asyncio.create_task(farm.play_pods())]
        try:
            tiers = [f"served-{number:02d}" for number in range(notices)]
            for tier in tiers:
                await bed.apply(TIER.replace("NAME", tier))
            await settled(bed, tiers)
            await bed.dev("process", "controller-manager", "stop")
            await farm.make(range(few, nodes), beating=False)
            for number in range(1, rounds + 1):
                print(f"round {number}: {nodes} nodes, {notices} notices …", file=sys.stderr)
                await asyncio.sleep(REST_S)
                load, used = os.getloadavg()[0], cpu_s(bed, "apiserver")
                spent = cpu_s(bed, "operator")
                waits = list((await give_notice(bed, tiers)).values())
                report.facts[f"round {number}: load of the machine"] = load
                report.facts[f"round {number}: operator's CPU, s"] = round(
                    cpu_s(bed, "operator") - spent, 2
                )
                report.facts[f"round {number}: API server's CPU, s"] = round(
                    cpu_s(bed, "apiserver") - used, 2
                )
                every += waits
                _row(report, str(number), waits)
                if number < rounds:
                    await again(bed, tiers)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    _row(report, "all", every)
    report.expect(len(every) == rounds * notices, "every notice was answered by a replacement")
    p99 = percentile(every, 0.99)
    report.expect(p99 < TARGET_S, f"p99 below {TARGET_S * 1000:.0f} ms")
    return report


def _row(report: Report, name: str, waits: list[float]) -> None:
    milliseconds = [1000 * wait for wait in waits]
    report.row(
        round=name,
        notices=len(waits),
        p50_ms=percentile(milliseconds, 0.5),
        p90_ms=percentile(milliseconds, 0.9),
        p99_ms=percentile(milliseconds, 0.99),
        max_ms=max(milliseconds, default=float("nan")),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--notices", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = asyncio.run(measure(options.nodes, options.notices, options.rounds))
    sys.exit(report.print(as_json=options.json))


if __name__ == "__main__":
    main()
