"""The operator's composition root: makes every part once, runs them, and ends them in order.

The end matters as much as the start: what is being written is finished, the Lease is released so
that the other replica takes over at once, then Kopf is told to stop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, NoReturn

import structlog

from spotinference.api import names
from spotinference.api.kinds import LEASE, TIER, Json, Kind
from spotinference.clients.clock import SystemClock
from spotinference.clients.kube import Kube
from spotinference.clients.leader import Elector
from spotinference.clients.vllm import EngineClient
from spotinference.controller import garbage, nodefeed, preflight, probes, watching
from spotinference.controller.act import Actor
from spotinference.controller.config import START_DEADLINE_S, STOP_DEADLINE_S, OperatorConfig
from spotinference.controller.demand import DemandBook
from spotinference.controller.events import EventPoster
from spotinference.controller.handlers import WATCHED, Router
from spotinference.controller.latency import Latencies
from spotinference.controller.learning import Learner
from spotinference.controller.market_metrics import MarketMetrics
from spotinference.controller.metrics import PREFIX, Metrics
from spotinference.controller.nodeevents import NodeEvents
from spotinference.controller.nodes import NodeWatch
from spotinference.controller.observe import Observer
from spotinference.controller.pools import PoolStatuses
from spotinference.controller.queue import WorkQueue
from spotinference.controller.reconciler import Reconciler
from spotinference.controller.resync import Resync
from spotinference.controller.scrape import Scraper
from spotinference.controller.store import Store
from spotinference.controller.volumes import VolumeZones
from spotinference.controller.writer import Writer
from spotinference.core.observed import OperatorSettings
from spotinference.core.reconcile import begin

log = structlog.get_logger(__name__)

LEADER_LEASE = "spotinference-operator"
KOPF_STOP_S = 2.0
API_SILENCE_S = 30.0
"""Not ready after this long without an answer to the elector, which asks every second or two."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that runs, wired together."""

    elector: Elector
    queue: WorkQueue
    router: Router
    nodes: NodeWatch
    node_events: NodeEvents
    volumes: VolumeZones
    scraper: Scraper
    learner: Learner
    pools: PoolStatuses
    resync: Resync
    heartbeat: probes.Heartbeat
    metrics: Metrics

    def lead(self, leads: bool) -> None:
        """Only the leader works; the other replica watches, so that it can take over at once."""
        self.pools.active = leads
        if leads:
            self.router.add_all(self.router.store.tiers())
            self.queue.open()
        else:
            self.queue.close()

    def unready(self) -> str | None:
        if not self.router.synced and any(self.router.store.all(kind) for kind in WATCHED):
            return "the first lists are not complete yet"
        silent_s = self.elector.unanswered_s()
        if silent_s > API_SILENCE_S:
            return f"the API server has not answered for {silent_s:.0f} s"
        return None

    def refresh_metrics(self) -> None:
        self.metrics.scrapes.labels("ok").set(self.scraper.stats.succeeded)
        for reason, count in self.scraper.stats.failed.items():
            self.metrics.scrapes.labels(reason).set(count)


def build(config: OperatorConfig, kube: Kube, engines: EngineClient) -> Parts:
    clock = SystemClock()
    metrics = Metrics()
    store = Store(clock)
    elector = Elector(
        kube, clock, namespace=config.namespace, name=LEADER_LEASE, identity=config.identity
    )
    demand = DemandBook(store, clock)
    latencies = Latencies(metrics, clock)
    writer = Writer(kube, store, metrics, elector.leads)
    # The queue calls the reconciler, whose parts enqueue: tied together through these names.
    queue = WorkQueue(
        lambda ref: reconciler.reconcile(ref),  # noqa: PLW0108  # made below
        on_wait=metrics.queue_wait.observe,
    )
    router = Router(
        store,
        queue,
        demand,
        latencies,
        on_relist=lambda kind: resync.suspect(kind),  # noqa: PLW0108  # made below
    )
    nodes = NodeWatch(kube, store, clock, router.node_changed)
    node_events = NodeEvents(kube, router.node_changed)
    nodes.events_of = node_events.of
    scraper = Scraper(store, engines, clock, queue.add)
    nodes.contact_of = scraper.contact
    volumes = VolumeZones(kube, store, queue.add)
    learner = Learner(
        store,
        scraper,
        demand,
        clock,
        queue.add,
        on_bug=lambda family: metrics.errors.labels(family).inc(),
    )
    observer = Observer(
        store,
        nodes,
        demand,
        scraper,
        clock,
        _settings(config),
        volume_zones=volumes.of,
        learned=learner.learned,
    )
    events = EventPoster(writer, metrics, clock, elector.identity)
    actor = Actor(kube, writer, store, demand, events, latencies, clock)
    markets = MarketMetrics(PREFIX, store, clock, elector.leads)
    metrics.registry.register(markets)
    reconciler = Reconciler(observer, actor, begin, latencies, metrics, markets)
    resync = Resync(kube, router, metrics)
    heartbeat = probes.Heartbeat(clock, queue.stalled_s)

    def removed(kind: Kind, body: Json) -> None:
        if kind == TIER:
            observer.forget(body["metadata"]["uid"])
        elif kind == LEASE:
            demand.forget(body)

    store.removed_listeners.append(removed)
    metrics.gauge("queue_depth", lambda: queue.depth)
    metrics.gauge("queue_active", lambda: queue.active)
    metrics.gauge("leads", lambda: float(elector.leads()))
    metrics.gauge("nodes_silent", lambda: len(nodes.silent))
    metrics.gauge("nodes_held", lambda: len(nodes.held))
    metrics.gauge("tiers", lambda: len(store.all(TIER)))
    parts = Parts(
        elector=elector,
        queue=queue,
        router=router,
        nodes=nodes,
        node_events=node_events,
        volumes=volumes,
        scraper=scraper,
        learner=learner,
        pools=PoolStatuses(store, router, writer),
        resync=resync,
        heartbeat=heartbeat,
        metrics=metrics,
    )
    elector.on_change = parts.lead
    return parts


def _settings(config: OperatorConfig) -> OperatorSettings:
    return OperatorSettings(
        image=config.image,
        hub_endpoint=config.hub_endpoint,
        system_namespace=config.namespace,
    )


async def run(config: OperatorConfig) -> int:
    """Until SIGTERM or SIGINT (0), or until a part ends that must not (1)."""
    stop = asyncio.Event()
    _on_signals(stop)
    async with AsyncExitStack() as stack:
        kube = await Kube.connect(field_manager=names.FIELD_MANAGER, kubeconfig=config.kubeconfig)
        stack.push_async_callback(kube.close)
        if not await _checked(kube, config, stop):
            return 0
        engines = EngineClient.open()
        stack.push_async_callback(engines.close)
        parts = build(config, kube, engines)
        await _serve(config, parts, stack)
        return await _run(kube, parts, stack, stop, config.watch_silence_s)


async def _checked(kube: Kube, config: OperatorConfig, stop: asyncio.Event) -> bool:
    """Whether all is there; False when we were told to stop meanwhile."""
    checking = _task(
        "preflight",
        preflight.check(kube, list(WATCHED), config.namespace, START_DEADLINE_S),
    )
    stopping = _task("stopping", stop.wait())
    await asyncio.wait({checking, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not checking.done():
        await _cancel([checking])
        return False
    await checking
    return True


async def _serve(config: OperatorConfig, parts: Parts, stack: AsyncExitStack) -> None:
    probe_app = probes.probe_app(parts.heartbeat.sickness, parts.unready)
    metrics_app = probes.metrics_app(parts.metrics.registry, parts.refresh_metrics)
    runner, probe_url = await probes.serve(probe_app, config.host, config.probe_port)
    stack.push_async_callback(runner.cleanup)
    runner, metrics_url = await probes.serve(metrics_app, config.host, config.metrics_port)
    stack.push_async_callback(runner.cleanup)
    log.info("operator.started", metrics=metrics_url, probes=probe_url)
    if config.announce is not None:
        probes.announce(config.announce, {"metrics": metrics_url, "probes": probe_url})


async def _run(
    kube: Kube, parts: Parts, stack: AsyncExitStack, stop: asyncio.Event, silence_s: float
) -> int:
    stop_kopf = asyncio.Event()
    nodes = nodefeed.feed(kube, parts.router, silence_s)
    ours = [
        _task("workers", parts.queue.run()),
        _task("scraper", parts.scraper.run()),
        _task("learner", parts.learner.run()),
        _task("nodes", parts.nodes.run()),
        _task("node-events", parts.node_events.run()),
        _task("node-feed", nodes.run()),
        _task("volumes", parts.volumes.run()),
        _task("pools", parts.pools.run()),
        _task("resync", parts.resync.run()),
        _task("heartbeat", parts.heartbeat.run()),
        _task("garbage", garbage.collect(parts.queue.idle)),
    ]
    election = _task("elector", parts.elector.run())
    stopping = _task("stopping", stop.wait())

    async def watch() -> None:
        await nodes.wait_synced(START_DEADLINE_S)
        await watching.run(kube, parts.router, stop_kopf, lambda: _on_signals(stop), silence_s)

    kopf = _task("kopf", watch())
    done, _ = await asyncio.wait(
        {*ours, election, kopf, stopping}, return_when=asyncio.FIRST_COMPLETED
    )
    ended = [task for task in done if task is not stopping]
    for task in ended:
        error = None if task.cancelled() else task.exception()
        log.critical("part.ended", part=task.get_name(), error=str(error), exc_info=error)
    await _stop(parts, ours, election, stack)
    stop_kopf.set()
    await asyncio.wait({kopf}, timeout=KOPF_STOP_S)
    log.info("operator.stopped", clean=not ended)
    return 1 if ended else 0


async def _stop(
    parts: Parts,
    ours: list[asyncio.Task[Any]],
    election: asyncio.Task[Any],
    stack: AsyncExitStack,
) -> None:
    """Ends what writes, then leadership, then what serves."""
    parts.queue.close()
    if not await parts.queue.drained(STOP_DEADLINE_S):
        log.warning("stop.unfinished", tiers=parts.queue.active)
    await _cancel(ours)
    await _cancel([election])
    await parts.elector.release()
    await stack.aclose()


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


def _task(name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.create_task(work, name=name)


def main(config: OperatorConfig) -> NoReturn:
    """Runs the operator and ends the process; errors of ours at start propagate."""
    runner = asyncio.Runner()
    try:
        code = runner.run(run(config))
    except BaseException:
        runner.close()
        raise
    # Everything of ours has ended. What Kopf and library threads still hold is not worth the
    # seconds that their orderly end takes on a busy machine (10 s and more were seen).
    sys.stderr.flush()
    os._exit(code)
