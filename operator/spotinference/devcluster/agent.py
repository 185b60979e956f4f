"""The node agent: kubelet and cloud provider of an embedded cluster, composed.

Run by the supervisor, in its loop: `NodeAgent(...).run()` until cancelled. Reacts to watched
objects; time plays a part only where it does in reality (boots, idle nodes, heartbeats, probes).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import aiohttp
import structlog

from spotinference import errors
from spotinference.api import times
from spotinference.api.kinds import NODE, POD, PV, PVC, Json
from spotinference.api.names import ZONE_LABEL
from spotinference.clients.clock import Clock, SystemClock
from spotinference.clients.kube import Kube
from spotinference.clients.reflector import Reflector
from spotinference.core.observed import Market
from spotinference.devcluster import market, notice, processes, sessions
from spotinference.devcluster.billing import Bill
from spotinference.devcluster.containers import INHERITED, Timing
from spotinference.devcluster.events import Events
from spotinference.devcluster.images import ImageTable
from spotinference.devcluster.market import Ask, Room
from spotinference.devcluster.nodes import NodeContext, SimNode, market_of
from spotinference.devcluster.paths import ClusterPaths
from spotinference.devcluster.pods import PodRuntime, PodWorker
from spotinference.devcluster.podstatus import Verdict
from spotinference.devcluster.topology import Topology
from spotinference.devcluster.volumes import Provisioner

log = structlog.get_logger(__name__)

COMPONENT = "devcluster-agent"
SYNC_TIMEOUT_S = 30.0
SCALE_DOWN_TAINT = "ToBeDeletedByClusterAutoscaler"
SCALE_DOWN_SETTLE_S = 0.5
"""Between the taint and the last look: what the scheduler has bound meanwhile saves the node."""
SHUTDOWN_SHARE = 0.5
"""Of a notice, what a graceful node shutdown leaves to ordinary pods (GKE: 15 of 30 s)."""
PLAN_RETRY_S = 1.0
DRAIN_RETRY_S = 5.0


@dataclass(slots=True)
class _Boot:
    """A node that was launched and is not there yet."""

    name: str
    market: Market
    since: datetime
    task: asyncio.Task[None] | None = None


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
        self._offers, self._capacity = market.offers_of(topology)
        self._events = Events(kube, self._clock, COMPONENT)
        self._bill = Bill(paths.root / "nodes.jsonl", self._clock)
        self._ledger = paths.run / "sessions.jsonl"
        self._context = NodeContext(
            kube, self._clock, self._timing, self._events, paths.name, host_ip
        )
        self._nodes: dict[str, SimNode] = {}
        self._boots: dict[str, _Boot] = {}
        self._workers: dict[str, PodWorker] = {}
        self._beats: dict[str, asyncio.Task[None]] = {}
        self._idle_since: dict[str, float] = {}
        self._awaited: frozenset[str] = frozenset()
        self._replan = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._runtime: PodRuntime | None = None
        self._volumes = Provisioner(kube, paths.volumes, self._events, self._zone_of)
        self._pods = Reflector(kube, POD, on_change=self._pod_changed)
        self._api_nodes = Reflector(kube, NODE, on_change=self._node_changed)
        self._claims = Reflector(kube, PVC, on_change=lambda *_: self._volumes.poke())
        self._pvs = Reflector(kube, PV, on_change=lambda *_: self._volumes.poke())
        self._ready = asyncio.Event()

    # --- life ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled; then every container is killed (the cluster is going down)."""
        killed = sessions.kill_leftovers(self._paths, self._ledger)
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
        await self._adopt_nodes()
        tasks.create_task(self._pods.run())
        await self._pods.wait_synced(SYNC_TIMEOUT_S)
        tasks.create_task(self._volumes.run())
        tasks.create_task(self._keep_planning())
        self._volumes.poke()
        self._replan.set()
        self._ready.set()

    async def _adopt_nodes(self) -> None:
        """Nodes of a former agent: their machines never stopped, their processes are gone."""
        for node in list(self._api_nodes.objects.values()):
            where = market_of(node, self._paths.name)
            if where is None:
                continue
            name = node["metadata"]["name"]
            if where not in self._offers:
                await SimNode(name, next(iter(self._offers.values())), self._context).delete()
                continue
            sim = SimNode(name, self._offers[where], self._context)
            await sim.register()
            self._nodes[name] = sim
            self._start_beat(sim)

    async def _stop_all(self) -> None:
        for worker in self._workers.values():
            worker.kill()
        await asyncio.gather(*(worker.lose() for worker in list(self._workers.values())))

    def _pod_runtime(self, http: aiohttp.ClientSession) -> PodRuntime:
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        return PodRuntime(
            kube=self._kube,
            pods_dir=self._pods_dir,
            logs=self._paths.pod_logs,
            ledger=self._ledger,
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
        sim = self._node(node)
        if not notice_s:
            await self._vanish(sim, "reclaimed")
            return None
        deadline = self._clock.now() + timedelta(seconds=notice_s)
        signs = notice.signs(sim.offer.provider, deadline)
        self._spawn(self._vanish_later(sim, notice_s), f"reclaim {node}")
        await sim.show(signs, deadline)
        if signs.shutting_down:
            verdict = Verdict(
                "Terminated", "Pod was terminated in response to imminent node shutdown."
            )
            for worker in self._workers_on(node):
                worker.shut_down(notice_s * SHUTDOWN_SHARE, verdict)
        if signs.drain:
            self._spawn(self._drain(sim), f"drain {node}")
        self._replan.set()
        return deadline

    async def silence(self, node: str) -> None:
        """The machine dies and nobody says so: processes gone, object stays, heartbeats stop."""
        sim = self._node(node)
        sim.silent = True
        workers = self._kill_node(sim)
        self._bill.ended(node, "lost")
        await asyncio.gather(*(worker.lose() for worker in workers))

    async def set_capacity(self, pool: str, zone: str, capacity: int) -> None:
        """How many nodes the market has at most; nodes that exist stay."""
        where = Market(pool, zone)
        if where not in self._offers:
            known = ", ".join(str(m) for m in sorted(self._offers))
            raise errors.ConfigInvalid(f"no market {where} in this cluster; it has {known}")
        self._capacity[where] = capacity
        self._replan.set()

    def status(self) -> Json:
        """Markets and nodes as JSON, for `dev status` and the demo."""
        used = self._used_capacity()
        return {
            "markets": [
                {
                    "pool": where.pool,
                    "zone": where.zone,
                    "capacity": self._capacity[where],
                    "nodes": used.get(where, 0),
                    "microUsdPerHour": offer.micro_usd_per_h,
                }
                for where, offer in sorted(self._offers.items())
            ],
            "nodes": [self._node_row(sim) for sim in self._nodes.values()]
            + [
                {"name": b.name, "pool": b.market.pool, "zone": b.market.zone, "state": "booting"}
                for b in self._boots.values()
            ],
        }

    def _node_row(self, sim: SimNode) -> Json:
        state = "silent" if sim.silent else "doomed" if sim.notice_deadline else "ready"
        row: Json = {
            "name": sim.name,
            "pool": sim.market.pool,
            "zone": sim.market.zone,
            "state": state,
            "pods": sorted(worker.name for worker in self._workers_on(sim.name)),
        }
        if sim.notice_deadline is not None:
            row["deadline"] = times.to_text(sim.notice_deadline)
        return row

    # --- watching --------------------------------------------------------------------------------

    def _pod_changed(self, before: Json | None, after: Json | None) -> None:
        self._replan.set()
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
        node = self._nodes.get(after["spec"].get("nodeName", ""))
        if node is not None and not node.silent:
            self._adopt_pod(after)

    def _adopt_pod(self, pod: Json) -> None:
        assert self._runtime is not None
        known = (pod.get("status") or {}).get("podIP")
        worker = PodWorker(pod, known or self._address(), self._context.host_ip, self._runtime)
        self._used.add(worker.ip)
        self._workers[worker.uid] = worker
        worker.begin(self._pod_done)

    def _pod_done(self, worker: PodWorker) -> None:
        self._workers.pop(worker.uid, None)
        key = tuple(worker.name.split("/"))
        current = self._pods.objects.get((key[0], key[1]))
        if current is None or current["metadata"]["uid"] != worker.uid:
            self._used.discard(worker.ip)  # else: the lost pod's object still shows this address
        self._replan.set()

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
        self._replan.set()
        if after is None and before is not None:
            sim = self._nodes.get(before["metadata"]["name"])
            if sim is not None:  # somebody deleted the object: the machine goes with it
                self._spawn(self._vanish(sim, "deleted"), f"vanish {sim.name}")

    def _zone_of(self, node: str) -> str | None:
        if node in self._nodes:
            return self._nodes[node].market.zone
        found = self._api_nodes.objects.get(("", node))
        return None if found is None else found["metadata"]["labels"].get(ZONE_LABEL)

    # --- nodes come and go -----------------------------------------------------------------------

    async def _keep_planning(self) -> None:
        while True:
            timeout_s = self._next_idle_s()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._replan.wait()
            self._replan.clear()
            try:
                self._plan()
            except errors.SpotinferenceError as error:
                log.warning("agent.plan_failed", error=str(error))
                await asyncio.sleep(PLAN_RETRY_S)
                self._replan.set()

    def _plan(self) -> None:
        pods = sorted(
            (pod for pod in self._pods.objects.values() if market.is_unschedulable(pod)),
            key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]),
        )
        asks = [market.ask_of(pod, self._volumes.node_terms(pod)) for pod in pods]
        used = self._used_capacity()
        left = {where: self._capacity[where] - used.get(where, 0) for where in self._offers}
        plan = market.plan(asks, self._rooms(), self._offers, left)
        self._awaited = plan.awaited
        for name in plan.cancel:
            self._cancel(name, "cancelled")
        for where in plan.launch:
            self._launch(where)
        self._note_refused(asks, plan.refused)
        self._note_idle()

    def _rooms(self) -> list[Room]:
        rooms = {
            sim.name: Room(sim.name, sim.market, dict(sim.offer.room), booting=False)
            for sim in self._nodes.values()
            if not sim.silent and sim.notice_deadline is None and not sim.leaving
        }
        for pod in self._pods.objects.values():
            room = rooms.get(pod["spec"].get("nodeName", ""))
            if room is not None and not _terminal(pod):
                for name, amount in market.needs(pod).items():
                    room.free[name] = room.free.get(name, 0) - amount
        boots = [
            Room(b.name, b.market, dict(self._offers[b.market].room), booting=True)
            for b in self._boots.values()
        ]
        return [*rooms.values(), *boots]

    def _used_capacity(self) -> dict[Market, int]:
        used: dict[Market, int] = {}
        for where in [n.market for n in self._nodes.values()] + [
            b.market for b in self._boots.values()
        ]:
            used[where] = used.get(where, 0) + 1
        return used

    def _launch(self, where: Market) -> None:
        name = f"{where.pool}-{where.zone}-{secrets.token_hex(3)}"
        boot = _Boot(name, where, self._clock.now())
        self._boots[name] = boot
        self._bill.launched(name, where, self._offers[where].micro_usd_per_h)
        log.info("node.launch", node=name, market=str(where))
        boot.task = self._spawn(self._boot(boot), f"boot {name}")

    async def _boot(self, boot: _Boot) -> None:
        offer = self._offers[boot.market]
        await asyncio.sleep(offer.boot_delay_s)
        sim = SimNode(boot.name, offer, self._context)
        # Known before it is registered: the scheduler may bind a pod within the same millisecond.
        self._nodes[sim.name] = sim
        del self._boots[boot.name]
        try:
            await sim.register()
        except errors.SpotinferenceError as error:
            log.warning("node.register_failed", node=sim.name, error=str(error))
            await self._vanish(sim, "cancelled")
            return
        self._bill.ready(sim.name)
        log.info("node.ready", node=sim.name)
        self._start_beat(sim)
        self._replan.set()

    def _cancel(self, name: str, reason: str) -> None:
        boot = self._boots.pop(name)
        if boot.task is not None:
            boot.task.cancel()
        self._bill.ended(name, reason)
        log.info("node.launch_cancelled", node=name)

    def _start_beat(self, sim: SimNode) -> None:
        task = self._spawn(sim.beat(), f"heartbeats {sim.name}")
        self._beats[sim.name] = task

    def _note_refused(self, asks: list[Ask], refused: tuple[str, ...]) -> None:
        by_uid = {ask.uid: ask.pod for ask in asks}
        for uid in refused:
            self._events.normal(
                by_uid[uid], "NotTriggerScaleUp", "no market that fits the pod has capacity left"
            )

    # --- idle nodes ------------------------------------------------------------------------------

    def _note_idle(self) -> None:
        now = asyncio.get_running_loop().time()
        busy = {
            pod["spec"].get("nodeName", "")
            for pod in self._pods.objects.values()
            if not _terminal(pod)
        }
        for sim in list(self._nodes.values()):
            if sim.name in busy or sim.name in self._awaited or sim.silent or sim.leaving:
                self._idle_since.pop(sim.name, None)
                continue
            since = self._idle_since.setdefault(sim.name, now)
            if now - since >= sim.offer.idle_after_s and sim.notice_deadline is None:
                sim.leaving = True
                self._spawn(self._retire(sim), f"retire {sim.name}")

    def _next_idle_s(self) -> float | None:
        """Until the next node has been idle long enough; None: nothing to wait for."""
        now = asyncio.get_running_loop().time()
        waits = [
            since + self._nodes[name].offer.idle_after_s - now
            for name, since in self._idle_since.items()
            if name in self._nodes and not self._nodes[name].leaving
        ]
        return max(0.01, min(waits)) if waits else None

    async def _retire(self, sim: SimNode) -> None:
        """Closes an empty node, looks once more, removes it; a pod that came meanwhile saves it."""
        await sim.taint(SCALE_DOWN_TAINT)
        await asyncio.sleep(SCALE_DOWN_SETTLE_S)
        try:
            bound = await self._kube.list(POD, field_selector=f"spec.nodeName={sim.name}")
        except errors.SpotinferenceError as error:
            log.warning("node.retire_failed", node=sim.name, error=str(error))
            sim.leaving = False
            return
        if any(not _terminal(pod) for pod in bound.items):
            await sim.untaint(SCALE_DOWN_TAINT)
            sim.leaving = False
            self._replan.set()
            return
        await self._vanish(sim, "idle")

    # --- loss ------------------------------------------------------------------------------------

    async def _vanish_later(self, sim: SimNode, notice_s: float) -> None:
        await asyncio.sleep(notice_s)
        await self._vanish(sim, "reclaimed")

    async def _vanish(self, sim: SimNode, reason: str) -> None:
        """Processes and node object go at the same instant; volumes stay."""
        if self._nodes.get(sim.name) is not sim:
            return
        workers = self._kill_node(sim)
        del self._nodes[sim.name]
        self._idle_since.pop(sim.name, None)
        if not sim.silent:
            self._bill.ended(sim.name, reason)
        log.info("node.gone", node=sim.name, reason=reason, pods=[w.name for w in workers])
        await asyncio.gather(sim.delete(), *(worker.lose() for worker in workers))
        self._replan.set()

    def _kill_node(self, sim: SimNode) -> list[PodWorker]:
        workers = self._workers_on(sim.name)
        for worker in workers:
            worker.kill()
        if beat := self._beats.pop(sim.name, None):
            beat.cancel()
        return workers

    async def _drain(self, sim: SimNode) -> None:
        """Evicts the node's pods one after the other, as the provider's drain does."""
        while self._nodes.get(sim.name) is sim:
            left = [w for w in self._workers_on(sim.name) if not w.deleting]
            if not left:
                return
            for worker in left:
                await self._evict(worker)
            await asyncio.sleep(DRAIN_RETRY_S)

    async def _evict(self, worker: PodWorker) -> None:
        meta = worker.pod["metadata"]
        body: Json = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": meta["name"], "namespace": meta["namespace"]},
            "deleteOptions": {"preconditions": {"uid": meta["uid"]}},
        }
        try:
            await self._kube.create(POD, body, subresource="eviction")
        except errors.Throttled:  # a disruption budget says not yet
            log.info("node.eviction_refused", pod=worker.name)
        except errors.SpotinferenceError as error:
            log.info("node.eviction_failed", pod=worker.name, error=str(error))

    # --- small ------------------------------------------------------------------------------------

    def _workers_on(self, node: str) -> list[PodWorker]:
        return [w for w in self._workers.values() if w.pod["spec"].get("nodeName") == node]

    def _node(self, name: str) -> SimNode:
        sim = self._nodes.get(name)
        if sim is None:
            known = ", ".join(sorted(self._nodes)) or "none"
            raise errors.ConfigInvalid(f"no node {name!r} in this cluster; there are: {known}")
        return sim

    def _spawn(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        assert self._tasks is not None, "the agent does not run"
        return self._tasks.create_task(_logged(work, name), name=name)


async def _logged(work: Coroutine[object, object, None], name: str) -> None:
    """One failed task is not the agent's end."""
    try:
        await work
    except Exception:
        log.exception("agent.task_failed", task=name)


def _terminal(pod: Json) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
