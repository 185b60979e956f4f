"""The node agent: kubelet and cloud provider of an embedded cluster, composed.

Run by the supervisor, in its loop: `NodeAgent(...).run()` until cancelled. Reacts to watched
objects; time plays a part only where it does in reality (boots, idle nodes, heartbeats, probes).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterable
from datetime import datetime
from pathlib import Path

import aiohttp
import structlog

from spotinference import errors
from spotinference.api.kinds import NODE, POD, PV, PVC, Json
from spotinference.api.names import ZONE_LABEL
from spotinference.clients.clock import Clock, SystemClock
from spotinference.clients.kube import Kube
from spotinference.clients.reflector import Reflector
from spotinference.devcluster import processes, sessions
from spotinference.devcluster.billing import Bill
from spotinference.devcluster.containers import INHERITED
from spotinference.devcluster.containerstate import Timing
from spotinference.devcluster.events import Events
from spotinference.devcluster.fleet import Fleet, Surroundings
from spotinference.devcluster.images import ImageTable
from spotinference.devcluster.nodes import NodeContext
from spotinference.devcluster.paths import ClusterPaths
from spotinference.devcluster.pods import PodRuntime, PodWorker
from spotinference.devcluster.topology import Topology
from spotinference.devcluster.volumes import Provisioner

log = structlog.get_logger(__name__)

COMPONENT = "devcluster-agent"
SYNC_TIMEOUT_S = 30.0
BILL_FILE = "nodes.jsonl"


class NodeAgent:
    """All nodes, pods and volumes of one cluster."""

    def __init__(
        self,
        kube: Kube,
        paths: ClusterPaths,
        topology: Topology,
        images: ImageTable,
        *,
        addresses: Iterable[str],
        host_ip: str,
        clock: Clock | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._kube = kube
        self._paths = paths
        self._images = images
        self._clock = clock or SystemClock()
        self._timing = timing or Timing()
        self._addresses = list(addresses)
        self._next_address = 0
        self._used: set[str] = set()
        self._events = Events(kube, self._clock, COMPONENT)
        self._host_ip = host_ip
        self._workers: dict[str, PodWorker] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._runtime: PodRuntime | None = None
        self._volumes = Provisioner(kube, paths.volumes, self._events, self._zone_of)
        self._pods = Reflector(kube, POD, on_change=self._pod_changed)
        self._api_nodes = Reflector(kube, NODE, on_change=self._node_changed)
        self._claims = Reflector(kube, PVC, on_change=lambda *_: self._volumes.poke())
        self._pvs = Reflector(kube, PV, on_change=lambda *_: self._volumes.poke())
        self._fleet = self._make_fleet(topology)
        self._ready = asyncio.Event()

    # --- life ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled; then every container is killed (the cluster is going down)."""
        killed = sessions.kill_leftovers(self._paths, self._paths.session_ledger)
        if killed:
            log.warning("agent.leftovers_killed", processes=killed)
        for folder in (self._pods_dir, self._paths.pod_logs, self._paths.volumes, self._paths.run):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
            self._runtime = self._pod_runtime(http)
            try:
                async with asyncio.TaskGroup() as tasks:
                    self._tasks = tasks
                    await self._start(tasks)
            finally:
                await self._stop_all()

    async def wait_ready(self, timeout_s: float = SYNC_TIMEOUT_S) -> None:
        async with asyncio.timeout(timeout_s):
            await self._ready.wait()

    async def _start(self, tasks: asyncio.TaskGroup) -> None:
        self._volumes.read_from(self._claims.objects, self._pvs.objects)
        tasks.create_task(self._events.run())
        reflectors = (self._api_nodes, self._claims, self._pvs)
        for reflector in reflectors:
            tasks.create_task(reflector.run())
        for reflector in reflectors:
            await reflector.wait_synced(SYNC_TIMEOUT_S)
        await self._fleet.adopt(list(self._api_nodes.objects.values()))
        tasks.create_task(self._pods.run())
        await self._pods.wait_synced(SYNC_TIMEOUT_S)
        tasks.create_task(self._volumes.run())
        tasks.create_task(self._fleet.run())
        self._volumes.poke()
        self._fleet.poke()
        self._ready.set()

    async def _stop_all(self) -> None:
        for worker in self._workers.values():
            worker.kill()
        await asyncio.gather(*(worker.lose() for worker in list(self._workers.values())))

    def _make_fleet(self, topology: Topology) -> Fleet:
        context = NodeContext(
            self._kube, self._clock, self._timing, self._events, self._paths.name, self._host_ip
        )
        around = Surroundings(
            pods=self._pods.objects.values,
            volume_terms=self._volumes.node_terms,
            workers_on=self._workers_on,
            spawn=self._spawn,
        )
        return Fleet(topology, context, Bill(self._paths.root / BILL_FILE, self._clock), around)

    def _pod_runtime(self, http: aiohttp.ClientSession) -> PodRuntime:
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        return PodRuntime(
            kube=self._kube,
            pods_dir=self._pods_dir,
            logs=self._paths.pod_logs,
            ledger=self._paths.session_ledger,
            images=self._images,
            http=http,
            clock=self._clock,
            timing=self._timing,
            events=self._events,
            claim_folder=self._volumes.claim_folder,
            base_env={**inherited, **processes.marker_env(self._paths)},
        )

    @property
    def _pods_dir(self) -> Path:
        return self._paths.root / "pods"

    # --- commands --------------------------------------------------------------------------------

    async def reclaim(self, node: str, notice_s: float | None) -> datetime | None:
        """The provider takes the node: after a notice (returns the deadline), or at once."""
        return await self._fleet.reclaim(node, notice_s)

    async def silence(self, node: str) -> None:
        """The machine dies and nobody says so: processes gone, object stays, heartbeats stop."""
        await self._fleet.silence(node)

    async def set_capacity(self, pool: str, zone: str, capacity: int) -> None:
        """How many nodes the market has at most; nodes that exist stay."""
        self._fleet.set_capacity(pool, zone, capacity)

    def status(self) -> Json:
        """Markets and nodes as JSON, for `dev status` and the demo."""
        return self._fleet.status()

    # --- watching --------------------------------------------------------------------------------

    def _pod_changed(self, before: Json | None, after: Json | None) -> None:
        self._fleet.poke()
        if after is None:
            assert before is not None
            if worker := self._workers.get(before["metadata"]["uid"]):
                worker.removed()
            else:
                self._used.discard((before.get("status") or {}).get("podIP", ""))
            return
        if before is not None and before["metadata"]["uid"] != after["metadata"]["uid"]:
            self._pod_changed(before, None)
        worker = self._workers.get(after["metadata"]["uid"])
        if worker is not None:
            worker.update(after)
            return
        node = self._fleet.nodes.get(after["spec"].get("nodeName", ""))
        if node is not None and not node.silent:
            self._adopt_pod(after)

    def _adopt_pod(self, pod: Json) -> None:
        assert self._runtime is not None
        known = (pod.get("status") or {}).get("podIP")
        worker = PodWorker(pod, known or self._address(), self._host_ip, self._runtime)
        self._used.add(worker.ip)
        self._workers[worker.uid] = worker
        worker.begin(self._pod_done)

    def _pod_done(self, worker: PodWorker) -> None:
        self._workers.pop(worker.uid, None)
        key = tuple(worker.name.split("/"))
        current = self._pods.objects.get((key[0], key[1]))
        if current is None or current["metadata"]["uid"] != worker.uid:
            self._used.discard(worker.ip)  # else: the lost pod's object still shows this address
        self._fleet.poke()

    def _address(self) -> str:
        """The next free pod address, in rotation: one just given back is not used again at once."""
        for _ in range(len(self._addresses)):
            address = self._addresses[self._next_address]
            self._next_address = (self._next_address + 1) % len(self._addresses)
            if address not in self._used:
                return address
        raise errors.Bug("all pod addresses are in use")

    def _node_changed(self, before: Json | None, after: Json | None) -> None:
        self._volumes.poke()
        self._fleet.poke()
        if after is None and before is not None:
            self._fleet.object_deleted(before["metadata"]["name"])

    def _zone_of(self, node: str) -> str | None:
        if node in self._fleet.nodes:
            return self._fleet.nodes[node].market.zone
        found = self._api_nodes.objects.get(("", node))
        return None if found is None else found["metadata"]["labels"].get(ZONE_LABEL)

    # --- small ------------------------------------------------------------------------------------

    def _workers_on(self, node: str) -> list[PodWorker]:
        return [w for w in self._workers.values() if w.pod["spec"].get("nodeName") == node]

    def _spawn(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        assert self._tasks is not None, "the agent does not run"
        return self._tasks.create_task(_logged(work, name), name=name)


async def _logged(work: Coroutine[object, object, None], name: str) -> None:
    """One failed task is not the agent's end."""
    try:
        await work
    except Exception:
        log.exception("agent.task_failed", task=name)
