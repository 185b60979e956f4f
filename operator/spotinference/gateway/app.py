"""The composition root of the gateway: what there is, and in what order it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from aiohttp import web

from spotinference import errors
from spotinference.api import names
from spotinference.api.kinds import POD, TIER
from spotinference.clients.clock import Clock, SystemClock
from spotinference.clients.engine_pool import Pool
from spotinference.clients.kube import Kube
from spotinference.clients.reflector import Reflector
from spotinference.core.limits import Processes
from spotinference.core.observed import TierRef
from spotinference.gateway import announce
from spotinference.gateway import errors as gateway_errors
from spotinference.gateway.budgets import Budgets
from spotinference.gateway.catalogue import Catalogue, Tier
from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.context import Context
from spotinference.gateway.demand import DemandWriter
from spotinference.gateway.engines import ENGINE_KEEPALIVE_S, Engines
from spotinference.gateway.evacuation import Evacuation, Spawn
from spotinference.gateway.forward import Forward, door
from spotinference.gateway.keys import KeyRing
from spotinference.gateway.limits import Limits
from spotinference.gateway.listener import Listener
from spotinference.gateway.metrics import Metrics
from spotinference.gateway.parking import Parking
from spotinference.gateway.peers import Peers
from spotinference.gateway.replays import Replays
from spotinference.gateway.replicas import Replicas
from spotinference.gateway.server import Server
from spotinference.gateway.turns import Turns
from spotinference.gateway.usage import Usage
from spotinference.gateway.vitals import Vitals

log = structlog.get_logger(__name__)

FIELD_MANAGER = "spotinference-gateway"
ENGINE_SELECTOR = (
    f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY},{names.LABEL_ROLE}={names.ROLE_ENGINE}"
)
WARM_S = 8.0
"""A pooled connection to the API server lives 15 s idle; demand must not wait for a handshake."""
BACKLOG = 1024
LAST_EXCHANGE_S = 3.0
"""For the last tokens of months: an API server that hangs leaves no time for the usage records."""
GC_THRESHOLDS = (5_000, 50, 50)
"""Python's own are (700, 10, 10): made for programs with few live objects. The youngest 5,000 take
a millisecond, in which no token moves; 20,000 took four."""


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway that serves; where, and the parts that tests look at."""

    http: str
    metrics_url: str
    context: Context
    server: Server
    front: Listener


@asynccontextmanager
async def running(
    settings: GatewaySettings, kube: Kube, clock: Clock | None = None
) -> AsyncIterator[Running]:
    """Serves while the block runs; drains on its end. A task that dies ends the block."""
    if settings.keys_file is None:
        raise errors.ConfigInvalid("no keys file: pass --keys-file FILE")
    keys = KeyRing(settings.keys_file)
    keys.load()
    pool = Pool(limit=settings.engine_connections, keepalive_s=ENGINE_KEEPALIVE_S)
    async with contextlib.aclosing(pool), asyncio.TaskGroup() as tasks:
        parts = _assembled(settings, kube, clock or SystemClock(), pool, tasks.create_task)
        context = parts.context
        server = Server(context, keys, parts.watches.why_not_synced)
        front = Listener(
            server.handle, settings, server.refused_by_parser, server.is_full, server.refuse
        )
        ports = _Ports(
            settings, front, Listener(server.handle_operational, settings),
            Listener(server.handle, settings, server.refused_by_parser),
        )  # fmt: skip
        background = [
            tasks.create_task(part, name=name)
            for name, part in (
                *parts.watches.runs(),
                ("keys", keys.follow(settings.keys_poll_s)),
                ("sweep", front.sweep()),
                ("usage", context.usage.ship()),
                ("budgets", parts.budgets.follow(settings.budgets_s)),
                ("warm", _keep_warm(kube)),
                ("deadlines", context.engines.watch()),
            )
        ]
        try:
            await ports.open()
            yield Running(*ports.urls(), context, server, front)
            server.stopping = True
            await ports.accept_no_more()
            await server.drain(settings.drain_s)
        finally:
            await parts.close()
            await ports.close()
            for task in background:
                task.cancel()
            parts.evacuation.close()
            context.engines.close()


@dataclass(frozen=True, slots=True)
class _Parts:
    """What there is below the server."""

    context: Context
    watches: _Watches
    demand: DemandWriter
    budgets: Budgets
    evacuation: Evacuation

    async def close(self) -> None:
        """After the drain; nothing that was written or counted is lost."""
        self.context.parking.close()
        await self.context.replays.close()
        await self.context.forward.close()
        await asyncio.gather(
            self.demand.close(), self._count_the_last(), self.context.usage.close()
        )

    async def _count_the_last(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_EXCHANGE_S):
                await self.budgets.exchange()


def _assembled(
    settings: GatewaySettings, kube: Kube, clock: Clock, pool: Pool, spawn: Spawn
) -> _Parts:
    """Makes the parts and tells them of each other; nothing runs yet."""
    pod = settings.id or socket.gethostname()
    gateway_id = pod if settings.worker is None else f"{pod}-{settings.worker}"
    metrics, catalogue, vitals, replicas = Metrics(), Catalogue(), Vitals(settings), Replicas()
    demand = DemandWriter(
        kube=kube, gateway_id=gateway_id, clock=clock, catalogue=catalogue, settings=settings,
        metrics=metrics,
    )  # fmt: skip
    parking = Parking(settings, metrics, on_wanted=demand.wanted_changed, room=replicas.room)
    demand.bind(parking)
    replicas.on_routable = parking.replica_came
    engines = Engines(pool, replicas, settings, metrics, vitals, spawn)
    catalogue.on_change = _ends_waits(parking, catalogue, vitals)
    engines.on_slot = parking.release
    evacuation = Evacuation(replicas, settings, clock, metrics, spawn)
    replicas.on_doomed = evacuation.doomed
    processes = Processes()
    peers = Peers(clock, processes, own_pod=pod, processes_per_pod=settings.workers)
    if settings.restarted:
        peers.after_a_crash()
    shared = kube if settings.namespace else None
    budgets = Budgets(clock, gateway_id, shared, settings.namespace or "")
    context = Context(
        settings, clock, catalogue, replicas, parking, engines, metrics, vitals,
        Limits(clock, processes, budgets, metrics), Usage(settings, gateway_id, clock, metrics),
        Replays(settings), Forward(settings, peers), Turns(pool),
    )  # fmt: skip
    watches = _Watches(kube, settings, catalogue, replicas, peers)
    return _Parts(context, watches, demand, budgets, evacuation)


class _Watches:
    """What the gateway sees of the cluster, as it changes."""

    def __init__(
        self,
        kube: Kube,
        settings: GatewaySettings,
        catalogue: Catalogue,
        replicas: Replicas,
        peers: Peers,
    ) -> None:
        self._peers = peers
        self._synced = False
        self._all = {
            "tiers": Reflector(kube, TIER, on_change=catalogue.changed),
            "pods": Reflector(
                kube, POD, label_selector=ENGINE_SELECTOR, on_change=replicas.changed
            ),
        }
        if settings.peers_selector:
            self._all["gateways"] = Reflector(
                kube, POD, namespace=settings.namespace, label_selector=settings.peers_selector,
                on_change=peers.changed,
            )  # fmt: skip

    def runs(self) -> list[tuple[str, Coroutine[None, None, None]]]:
        """By name; each until it is cancelled."""
        return [(name, reflector.run()) for name, reflector in self._all.items()]

    def why_not_synced(self) -> str | None:
        """What was never listed yet; None when all was seen once, from then on for good."""
        if self._synced:  # each request asks
            return None
        if "gateways" in self._all and self._all["gateways"].synced:
            self._peers.synced()
        missing = [name for name, reflector in self._all.items() if not reflector.synced]
        self._synced = not missing
        return f"{missing[0]} are not listed yet" if missing else None


class _Ports:
    """The clients' port, the operational one beside it, and a worker's door for its siblings."""

    def __init__(
        self, settings: GatewaySettings, front: Listener, side: Listener, siblings: Listener
    ) -> None:
        self._settings = settings
        self._front = web.ServerRunner(front, shutdown_timeout=1.0)
        self._side = web.ServerRunner(side, shutdown_timeout=1.0)
        self._siblings = web.ServerRunner(siblings, shutdown_timeout=1.0)
        self._site: web.TCPSite | None = None

    async def open(self) -> None:
        """`OSError` when a port is taken."""
        settings = self._settings
        await self._front.setup()
        await self._side.setup()
        self._site = web.TCPSite(
            self._front,
            settings.host,
            settings.port,
            backlog=BACKLOG,
            reuse_port=settings.worker is not None,
        )
        host = settings.metrics_host or settings.host
        if settings.doors is not None and settings.worker is not None:
            await self._siblings.setup()
            await web.UnixSite(
                self._siblings, str(door(settings.doors, settings.worker)), backlog=BACKLOG
            ).start()
        await self._site.start()
        await web.TCPSite(self._side, host, settings.metrics_port).start()

    def urls(self) -> tuple[str, str]:
        """Of both, the clients' first."""
        front, side = (runner.addresses[0][:2] for runner in (self._front, self._side))
        return announce.url(*front), announce.url(*side)

    async def accept_no_more(self) -> None:
        """Clients' connections that are open stay."""
        if self._site is not None:
            await self._site.stop()

    async def close(self) -> None:
        await self._front.cleanup()
        await self._side.cleanup()
        await self._siblings.cleanup()


def _ends_waits(
    parking: Parking, catalogue: Catalogue, vitals: Vitals
) -> Callable[[TierRef, Tier | None], None]:
    """Requests that wait for a tier that went or was paused are told so at once."""
    last: dict[TierRef, Tier] = {}

    def changed(ref: TierRef, tier: Tier | None) -> None:
        if tier is None:
            vitals.forget(ref)
            gone = last.pop(ref, None)
            if gone is not None:
                parking.fail(ref, lambda: catalogue.gone(gone))
            return
        last[ref] = tier
        if tier.spec.paused:
            # What has begun waits on, to the cap: the tier may be resumed, or a replica be left.
            parking.fail(ref, lambda: gateway_errors.tier_paused(tier.names[0]), answered_too=False)

    return changed


async def _keep_warm(kube: Kube) -> None:
    """One cheap read now and then keeps a connection to the API server open."""
    while True:
        await asyncio.sleep(WARM_S)
        try:
            await kube.list(TIER, field_selector="metadata.name=spotinference-keep-warm")
        except errors.SpotinferenceError as error:
            log.debug("warm.failed", error=str(error))


def _calm_collector() -> None:
    """Cyclic garbage is rare here, and a full collection among 1,000 streams delays every token."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _room_for_descriptors(count: int) -> None:
    """So many descriptors, or as many as the process may have, without a pause later on.

    Where a process begins with 1,024 of many more that it may have (systemd's default), 500 streams
    took them all: nobody could connect, and engines that are not reached are ejected.

    Linux doubles a process's table when it is full, and where there are threads waits for all
    processors to have seen that: 12 to 16 ms at 256, 512, ... in which no token moved.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        # The system's own limit may be lower than what the process may have.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
            soft = min(count, hard)
    count = min(count, soft)
    first = os.open(os.devnull, os.O_RDONLY)
    try:
        os.close(fcntl.fcntl(first, fcntl.F_DUPFD, count - 1))
    finally:
        os.close(first)


def _stop_with_supervisor(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """A worker whose supervisor was killed drains and ends: the pipe between them closes."""

    def closed() -> None:
        loop.remove_reader(sys.stdin)
        stop.set()

    loop.add_reader(sys.stdin, closed)


async def run(settings: GatewaySettings) -> None:
    """The process: until SIGTERM or SIGINT, then drains."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if settings.worker is not None:
        _stop_with_supervisor(loop, stop)
    _room_for_descriptors(2 * settings.max_connections)
    async with (
        await Kube.connect(field_manager=FIELD_MANAGER, kubeconfig=settings.kubeconfig) as kube,
        running(settings, kube) as gateway,
    ):
        if settings.announce is not None:
            announce.write(
                settings.announce,
                {
                    "http": gateway.http,
                    "metrics": f"{gateway.metrics_url}/metrics",
                    "probes": gateway.metrics_url,
                },
            )
        _calm_collector()
        log.info("gateway.serving", http=gateway.http, operational=gateway.metrics_url)
        await stop.wait()
        log.info("gateway.draining", at_most_s=settings.drain_s)
