"""`spotinference node-watch`: one process per node, from the metadata service to a node condition,
and a cordon where the machine goes: nothing new is to start there.

It writes nothing while nothing is announced, and decides nothing: the operator reads the condition
like any other sign of a provider (`core.providers`).
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field

import aiohttp
import structlog

from spotinference import errors
from spotinference.api.kinds import NODE, Json
from spotinference.clients.clock import Clock, SystemClock
from spotinference.clients.kube import Kube
from spotinference.clients.metadata import Asker, Source, detect, source
from spotinference.core import announcements
from spotinference.core.announcements import Announcement, Standing
from spotinference.core.notices import condition
from spotinference.core.providers import INTERRUPTION, RECLAIM
from spotinference.nodewatch.config import RECHECK_S, RETRY_MAX_S, START_S, NodeWatchConfig

log = structlog.get_logger(__name__)

FIELD_MANAGER = "spotinference-node-watch"
FIRST_RETRY_S = 0.5


@dataclass(slots=True)
class Watch:
    """The loop of one node."""

    kube: Kube
    metadata: Source
    clock: Clock
    node: str
    notice_s: float
    _standing: Standing | None = None
    """as far as we know; None: to be read"""
    _cordoned: bool = False
    _read_at: float = 0.0
    _last: Announcement | None = None
    _in_a_row: int = 0
    _retry_s: float = field(default=FIRST_RETRY_S)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            pause_s = await self.step()
            await asyncio.sleep(pause_s)

    async def step(self) -> float:
        """One answer of the metadata service, carried over; answers how long to pause."""
        try:
            announced = await self.metadata.answer()
            self._count(announced)
            await self._carry_over(announced)
        except (errors.Retryable, errors.NotFound, errors.Forbidden) as error:
            self._in_a_row = 0
            self._standing = None
            if self._retry_s == FIRST_RETRY_S:
                log.warning("nodewatch.unclear", error=str(error))
            pause_s = self._retry_s
            self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
            return pause_s
        self._retry_s = FIRST_RETRY_S
        return self.metadata.pause_s

    def _count(self, announced: Announcement | None) -> None:
        same = self._in_a_row > 0 and announced == self._last
        self._in_a_row = self._in_a_row + 1 if same else 1
        self._last = announced

    async def _carry_over(self, announced: Announcement | None) -> None:
        now = self.clock.monotonic()
        old = announced is not None and now - self._read_at >= RECHECK_S
        if self._standing is None or old:
            live = await self.kube.get(NODE, self.node)
            self._standing, self._read_at = Standing.of(condition(live, INTERRUPTION)), now
            self._cordoned = bool(live["spec"].get("unschedulable"))
        if not announcements.settled(announced, self._standing, self._in_a_row):
            return
        wanted = announcements.condition_for(
            announced, self._standing, self.clock.now(), self.notice_s
        )
        goes = announced is not None and announced.reason == RECLAIM
        if self._standing.reason == RECLAIM and not goes:
            await self._cordon(False)  # before the condition: after a crash both are tried again
        if wanted is not None:
            await self._write(wanted)
        if goes:
            # After it: the operator takes the time that is left from the condition.
            await self._cordon(True)

    async def _cordon(self, wanted: bool) -> None:
        """Ours alone: who else cordoned the node keeps it so (server-side apply)."""
        if wanted == self._cordoned:
            return
        body = {
            "apiVersion": NODE.api_version,
            "kind": NODE.kind,
            "metadata": {"name": self.node},
            "spec": {"unschedulable": True} if wanted else {},
        }
        live = await self.kube.apply(NODE, body)
        self._cordoned = bool(live["spec"].get("unschedulable"))
        log.info("nodewatch.cordoned" if wanted else "nodewatch.uncordoned")

    async def _write(self, wanted: Json) -> None:
        body = {
            "apiVersion": NODE.api_version,
            "kind": NODE.kind,
            "metadata": {"name": self.node},
            "status": {"conditions": [wanted]},
        }
        live = await self.kube.apply(NODE, body, subresource="status")
        self._standing = Standing.of(condition(live, INTERRUPTION))
        log.info("nodewatch.wrote", reason=wanted["reason"], message=wanted["message"])


async def _node(kube: Kube, name: str) -> Json:
    """Our node, once the API server shows it; `ConfigInvalid` after `START_S`."""
    try:
        async with asyncio.timeout(START_S):
            while True:
                try:
                    return await kube.get(NODE, name)
                except (errors.Retryable, errors.NotFound) as error:
                    log.warning("nodewatch.waiting", error=str(error))
                    await asyncio.sleep(1)
    except TimeoutError as error:
        raise errors.ConfigInvalid(
            f"node {name} was not to be read within {START_S:.0f} s: check --node and the network"
        ) from error


async def run(config: NodeWatchConfig) -> None:
    """Until SIGTERM or SIGINT; `ConfigInvalid` when there is no metadata service to ask."""
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, main.cancel)
    clock = SystemClock()
    async with (
        await Kube.connect(field_manager=FIELD_MANAGER, kubeconfig=config.kubeconfig) as kube,
        aiohttp.ClientSession(auto_decompress=False) as session,
    ):
        asker = Asker(session, config.metadata_url)
        node = await _node(kube, config.node)
        cloud = config.provider
        if cloud == "auto":
            found = await detect(str(node["spec"].get("providerID", "")), asker)
            if found is None:
                raise errors.ConfigInvalid(
                    f"node {config.node} has no providerID of aws, gce or azure, and no metadata "
                    f"service answers at {config.metadata_url}: keep node-watch off this node "
                    "(nodeWatch.nodeSelector), or say --provider"
                )
            cloud = found
        log.info("nodewatch.started", node=config.node, provider=cloud)
        metadata = source(cloud, asker)
        await Watch(kube, metadata, clock, config.node, config.notice_seconds).run()


def main(config: NodeWatchConfig) -> None:
    """Runs until a signal; errors of ours at start propagate."""
    try:
        asyncio.run(run(config))
    except asyncio.CancelledError:
        log.info("nodewatch.stopped")
