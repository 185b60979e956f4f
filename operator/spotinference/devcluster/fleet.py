"""The fleet of simulated nodes: launched when pods wait, retired when empty, taken by the provider.

Plays the cluster autoscaler and the cloud. Decisions are `market.plan`'s; this module carries them
out against the API and keeps the bill. Owned by the node agent, which feeds it with changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from spotinference import errors
from spotinference.api import times
from spotinference.api.kinds import POD, Json
from spotinference.core.observed import Market
from spotinference.devcluster import eviction, market, notice
from spotinference.devcluster.billing import Bill
from spotinference.devcluster.market import Ask, Room
from spotinference.devcluster.nodes import NodeContext, SimNode, market_of
from spotinference.devcluster.pods import PodWorker
from spotinference.devcluster.podstatus import Verdict
from spotinference.devcluster.topology import Topology

log = structlog.get_logger(__name__)

SCALE_DOWN_TAINT = "ToBeDeletedByClusterAutoscaler"
SCALE_DOWN_SETTLE_S = 0.5
"""Between the taint and the last look: what the scheduler has bound meanwhile saves the node."""
SHUTDOWN_SHARE = 0.5
"""Of a notice, what a graceful node shutdown leaves to ordinary pods (GKE: 15 of 30 s)."""
SHUTDOWN = Verdict("Terminated", "Pod was terminated in response to imminent node shutdown.")

PLAN_RETRY_S = 1.0

Spawn = Callable[[Coroutine[object, object, None], str], asyncio.Task[None]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the fleet sees of the rest of the agent."""

    pods: Callable[[], Iterable[Json]]
    """all pods of the cluster, from the watch"""
    volume_terms: Callable[[Json], tuple[Json, ...]]
    workers_on: Callable[[str], list[PodWorker]]
    spawn: Spawn


@dataclass(slots=True)
class _Boot:
    """A node that was launched and is not there yet."""

    name: str
    market: Market
    task: asyncio.Task[None] | None = None


class Fleet:
    """All nodes of one cluster and the markets they come from."""

    def __init__(
        self, topology: Topology, context: NodeContext, bill: Bill, around: Surroundings
    ) -> None:
        self._offers, self._capacity = market.offers_of(topology)
        self._context = context
        self._bill = bill
        self._around = around
        self.nodes: dict[str, SimNode] = {}
        self._boots: dict[str, _Boot] = {}
        self._beats: dict[str, asyncio.Task[None]] = {}
        self._idle_since: dict[str, float] = {}
        self._awaited: frozenset[str] = frozenset()
        self._refused: set[str] = set()
        self._replan = asyncio.Event()

    # --- what the agent tells --------------------------------------------------------------------

    def poke(self) -> None:
        """Pods or nodes changed."""
        self._replan.set()

    async def adopt(self, nodes: Iterable[Json]) -> None:
        """Nodes of a former agent: their machines never stopped, their processes are gone."""
        for node in nodes:
            where = market_of(node, self._context.cluster)
            if where is None:
                continue
            name = node["metadata"]["name"]
            if where not in self._offers:
                await SimNode(name, next(iter(self._offers.values())), self._context).delete()
                continue
            sim = SimNode(name, self._offers[where], self._context)
            await sim.register()
            self.nodes[name] = sim
            self._start_beat(sim)

    def object_deleted(self, name: str) -> None:
        """Somebody deleted a Node object: the machine goes with it."""
        if sim := self.nodes.get(name):
            self._around.spawn(self._vanish(sim, "deleted"), f"vanish {name}")

    # --- commands --------------------------------------------------------------------------------

    async def reclaim(self, node: str, notice_s: float | None) -> datetime | None:
        """The provider takes the node: after a notice (returns the deadline), or at once."""
        sim = self._node(node)
        if not notice_s:
            await self._vanish(sim, "reclaimed")
            return None
        deadline = self._context.clock.now() + timedelta(seconds=notice_s)
        signs = notice.signs(sim.offer.provider, deadline)
        self._around.spawn(self._vanish_later(sim, notice_s), f"reclaim {node}")
        await sim.show(signs, deadline)
        if signs.shutting_down:
            for worker in self._around.workers_on(node):
                worker.shut_down(notice_s * SHUTDOWN_SHARE, SHUTDOWN)
        if signs.drain:
            self._around.spawn(self._drain(sim), f"drain {node}")
        self._replan.set()
        return deadline

    async def silence(self, node: str) -> None:
        """The machine dies and nobody says so: processes gone, object stays, heartbeats stop."""
        sim = self._node(node)
        sim.silent = True
        workers = self._kill_node(sim)
        self._bill.ended(node, "lost")
        await asyncio.gather(*(worker.lose() for worker in workers))

    def set_capacity(self, pool: str, zone: str, capacity: int) -> None:
        """How many nodes the market has at most; nodes that exist stay, launches beyond it fail."""
        where = Market(pool, zone)
        if where not in self._offers:
            known = ", ".join(str(m) for m in sorted(self._offers))
            raise errors.ConfigInvalid(f"no market {where} in this cluster; it has {known}")
        self._capacity[where] = capacity
        surplus = max(0, self._used_capacity().get(where, 0) - capacity)
        booting = [b.name for b in self._boots.values() if b.market == where]
        for name in booting[::-1][:surplus]:
            self._cancel(name, "no-capacity")
        self._replan.set()

    def status(self) -> Json:
        """Markets and nodes as JSON."""
        used = self._used_capacity()
        markets = [
            {
                "pool": where.pool,
                "zone": where.zone,
                "capacity": self._capacity[where],
                "nodes": used.get(where, 0),
                "microUsdPerHour": offer.micro_usd_per_h,
            }
            for where, offer in sorted(self._offers.items())
        ]
        booting = [
            {"name": b.name, "pool": b.market.pool, "zone": b.market.zone, "state": "booting"}
            for b in self._boots.values()
        ]
        return {
            "markets": markets,
            "nodes": [self._node_row(sim) for sim in self.nodes.values()] + booting,
        }

    def _node_row(self, sim: SimNode) -> Json:
        state = "silent" if sim.silent else "doomed" if sim.notice_deadline else "ready"
        row: Json = {
            "name": sim.name,
            "pool": sim.market.pool,
            "zone": sim.market.zone,
            "state": state,
            "pods": sorted(worker.name for worker in self._around.workers_on(sim.name)),
        }
        if sim.notice_deadline is not None:
            row["deadline"] = times.to_text(sim.notice_deadline)
        return row

    # --- planning --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Plans after every change, until cancelled."""
        while True:
            timeout_s = self._next_idle_s()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._replan.wait()
            self._replan.clear()
            try:
                self._plan()
            except Exception:  # one odd pod must not take the cluster down
                log.exception("fleet.plan_failed")
                await asyncio.sleep(PLAN_RETRY_S)
                self._replan.set()

    def _plan(self) -> None:
        pods = sorted(
            (pod for pod in self._around.pods() if market.is_unschedulable(pod)),
            key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]),
        )
        asks = [market.ask_of(pod, self._around.volume_terms(pod)) for pod in pods]
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
            for sim in self.nodes.values()
            if not sim.silent and sim.notice_deadline is None and not sim.leaving
        }
        for pod in self._around.pods():
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
        for where in [n.market for n in self.nodes.values()] + [
            b.market for b in self._boots.values()
        ]:
            used[where] = used.get(where, 0) + 1
        return used

    def _launch(self, where: Market) -> None:
        name = f"{where.pool}-{where.zone}-{secrets.token_hex(3)}"
        boot = _Boot(name, where)
        self._boots[name] = boot
        self._bill.launched(name, where, self._offers[where].micro_usd_per_h)
        log.info("node.launch", node=name, market=str(where))
        boot.task = self._around.spawn(self._boot(boot), f"boot {name}")

    async def _boot(self, boot: _Boot) -> None:
        offer = self._offers[boot.market]
        await asyncio.sleep(offer.boot_delay_s)
        sim = SimNode(boot.name, offer, self._context)
        # Known before it is registered: the scheduler may bind a pod within the same millisecond.
        self.nodes[sim.name] = sim
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

    def _note_refused(self, asks: list[Ask], refused: tuple[str, ...]) -> None:
        """One Event per pod and refusal, not one per plan."""
        by_uid = {ask.uid: ask.pod for ask in asks}
        fresh = set(refused) - self._refused
        self._refused = set(refused)
        for uid in fresh:
            self._context.events.normal(
                by_uid[uid], "NotTriggerScaleUp", "no market that fits the pod has capacity left"
            )

    # --- idle nodes ------------------------------------------------------------------------------

    def _note_idle(self) -> None:
        now = asyncio.get_running_loop().time()
        busy = {
            pod["spec"].get("nodeName", "") for pod in self._around.pods() if not _terminal(pod)
        }
        for sim in list(self.nodes.values()):
            if sim.name in busy or sim.name in self._awaited or sim.silent or sim.leaving:
                self._idle_since.pop(sim.name, None)
                continue
            since = self._idle_since.setdefault(sim.name, now)
            if now - since >= sim.offer.idle_after_s and sim.notice_deadline is None:
                sim.leaving = True
                self._around.spawn(self._retire(sim), f"retire {sim.name}")

    def _next_idle_s(self) -> float | None:
        """Until the next node has been idle long enough; None: nothing to wait for."""
        now = asyncio.get_running_loop().time()
        waits = [
            since + self.nodes[name].offer.idle_after_s - now
            for name, since in self._idle_since.items()
            if name in self.nodes and not self.nodes[name].leaving
        ]
        return max(0.01, min(waits)) if waits else None

    async def _retire(self, sim: SimNode) -> None:
        """Closes an empty node, looks once more, removes it; a pod that came meanwhile saves it."""
        await sim.taint(SCALE_DOWN_TAINT)
        await asyncio.sleep(SCALE_DOWN_SETTLE_S)
        try:
            bound = await self._context.kube.list(POD, field_selector=f"spec.nodeName={sim.name}")
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
        if self.nodes.get(sim.name) is not sim:
            return
        workers = self._kill_node(sim)
        del self.nodes[sim.name]
        self._idle_since.pop(sim.name, None)
        if not sim.silent:
            self._bill.ended(sim.name, reason)
        log.info("node.gone", node=sim.name, reason=reason, pods=[w.name for w in workers])
        await asyncio.gather(sim.delete(), *(worker.lose() for worker in workers))
        self._replan.set()

    def _kill_node(self, sim: SimNode) -> list[PodWorker]:
        workers = self._around.workers_on(sim.name)
        for worker in workers:
            worker.kill()
        if beat := self._beats.pop(sim.name, None):
            beat.cancel()
        return workers

    async def _drain(self, sim: SimNode) -> None:
        """Evicts the node's pods until they are gone or the node is."""
        while self.nodes.get(sim.name) is sim:
            left = [w for w in self._around.workers_on(sim.name) if not w.deleting]
            if not left:
                return
            for worker in left:
                await eviction.evict(self._context.kube, worker.pod)
            await asyncio.sleep(eviction.RETRY_S)

    # --- small ------------------------------------------------------------------------------------

    def _start_beat(self, sim: SimNode) -> None:
        self._beats[sim.name] = self._around.spawn(sim.beat(), f"heartbeats {sim.name}")

    def _node(self, name: str) -> SimNode:
        sim = self.nodes.get(name)
        if sim is None:
            known = ", ".join(sorted(self.nodes)) or "none"
            raise errors.ConfigInvalid(f"no node {name!r} in this cluster; there are: {known}")
        return sim


def _terminal(pod: Json) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
