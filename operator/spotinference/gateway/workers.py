"""`gateway run --workers N`: N gateways behind one port, and the process that keeps them.

Each worker is what a gateway replica is: it watches, parks, writes its own demand Lease and
admits its own share of the limits. The kernel deals connections out (SO_REUSEPORT). The
supervisor serves no client: it starts workers, starts them again with a backoff when they end,
passes signals on, and answers the operational port for all of them (decision 0010).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from aiohttp import web

import spotinference
from spotinference import errors
from spotinference.clients.engine_pool import Pool
from spotinference.gateway import announce
from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.forward import door
from spotinference.gateway.listener import Listener
from spotinference.gateway.metrics import Metrics
from spotinference.gateway.overview import Operational
from spotinference.gateway.scratch import scratch

log = structlog.get_logger(__name__)

POLL_S = 0.05
STEADY_S = 60.0
"""A worker that ran this long starts again without a backoff."""
STOP_MARGIN_S = 6.0
"""Beyond the drain; then a worker is killed."""
SHARED_BOUNDS = (
    "max_connections",
    "max_parked",
    "max_parked_bytes",
    "max_parked_bytes_per_tier",
    "max_parked_per_key",
    "max_parked_bytes_per_key",
    "usage_max_bytes",
    "max_recorded_bytes",
    "max_recordings",
)
"""Bounds of the pod's memory and disk: each worker has its part."""


class Worker:
    """One gateway process, started again whenever it ends by itself."""

    def __init__(
        self, index: int, settings: GatewaySettings, port: int, folder: Path, log_level: str
    ) -> None:
        self.index = index
        self.restarts = 0
        self._settings = settings
        self._port = port
        self._folder = folder
        self._file = folder / f"worker-{index}.json"
        self._log_level = log_level
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._served = False
        """it got as far as listening, once at least"""

    def address(self) -> str | None:
        """Of its operational port; None while it is not listening."""
        try:
            url: str = json.loads(self._file.read_text())["probes"]
        except (OSError, ValueError):
            return None
        return url

    async def keep(self, metrics: Metrics) -> None:
        """Runs it until `stop`; `ConfigInvalid` when it never came as far as listening."""
        loop = asyncio.get_running_loop()
        failures = 0
        while not self._stopping.is_set():
            started = loop.time()
            code = await self._run()
            if self._stopping.is_set():
                return
            if not self._served:
                raise errors.ConfigInvalid(
                    f"worker {self.index} ended with exit code {code} before it listened; "
                    "its own message is above"
                )
            failures = 0 if loop.time() - started > STEADY_S else failures + 1
            self.restarts += 1
            metrics.worker_restarts.inc()
            pause_s = min(
                self._settings.worker_restart_s * 2 ** max(0, failures - 1),
                self._settings.worker_restart_max_s,
            )
            log.error("worker.ended", worker=self.index, code=code, again_in_s=pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s * random.uniform(0.8, 1.2)):
                    await self._stopping.wait()

    async def _run(self) -> int:
        """One life of the process; its exit code."""
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "spotinference", "gateway", "run", "--log-level", self._log_level,
            stdin=asyncio.subprocess.PIPE,  # its end tells the worker that its supervisor is gone
            env=self._environment(),
        )  # fmt: skip
        if self._stopping.is_set():  # `stop` came while it was being started, and saw none
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        log.info("worker.started", worker=self.index, pid=process.pid)
        ended = asyncio.ensure_future(process.wait())
        try:
            while not self._served and not ended.done():
                self._served = self.address() is not None
                await asyncio.wait([ended], timeout=POLL_S)
            return await ended
        finally:
            self._process = None
            for left in (self._file, door(self._folder, self.index)):
                left.unlink(missing_ok=True)
            if process.returncode is None:
                process.kill()
                await process.wait()

    def _environment(self) -> dict[str, str]:
        """Every setting by its variable, some of them the worker's own."""
        workers = self._settings.workers
        given = self._settings.model_dump(mode="json", exclude_none=True) | {
            "port": self._port,
            "metrics_host": "127.0.0.1",
            "metrics_port": 0,
            "announce": str(self._file),
            "worker": self.index,
            "doors": str(self._folder),
            "restarted": self.restarts > 0,
            **{name: max(1, getattr(self._settings, name) // workers) for name in SHARED_BOUNDS},
        }
        variables = {
            f"SPOTINFERENCE_GATEWAY_{name.upper()}": value
            if isinstance(value, str)
            else json.dumps(value)
            for name, value in given.items()
        }
        package = str(Path(spotinference.__file__).parents[1])
        path = os.environ.get("PYTHONPATH")
        return {
            **os.environ,
            **variables,
            "PYTHONPATH": f"{package}{os.pathsep}{path}" if path else package,
        }

    async def stop(self) -> None:
        """Lets it drain; kills it when it has not ended a while after the drain's limit."""
        self._stopping.set()
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._settings.drain_s + STOP_MARGIN_S):
                await process.wait()
        except TimeoutError:
            log.error("worker.killed", worker=self.index)  # noqa: TRY400 - no traceback to show
            with contextlib.suppress(ProcessLookupError):
                process.kill()


@contextmanager
def reserved(host: str, port: int) -> Iterator[int]:
    """Holds a port for the workers; `ConfigInvalid` when somebody has it.

    The socket that holds it never listens, so the kernel deals it no connection. Somebody else
    is found out by a first bind that does not share: two gateways must not share a port unseen.
    """
    family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
        holder = socket.socket(family, socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(where)
    except OSError as error:
        raise errors.ConfigInvalid(
            f"port {port} on {host}: {error.strerror}. Choose another with --port."
        ) from error
    with holder:
        yield holder.getsockname()[1]


async def run(settings: GatewaySettings, *, log_level: str) -> None:
    """The supervisor's process: until SIGTERM or SIGINT, then lets all workers drain."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    gathered = Metrics()
    pool = Pool(limit=8 * settings.workers, keepalive_s=4.0)
    named = settings.model_copy(update={"id": settings.id or socket.gethostname()})
    with (
        reserved(settings.host, settings.port) as port,
        scratch() as folder,
    ):
        workers = [
            Worker(index, named, port, folder, log_level) for index in range(settings.workers)
        ]
        operational = Operational([worker.address for worker in workers], pool, gathered)
        runner = web.ServerRunner(Listener(operational.handle, settings), shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, settings.metrics_host or settings.host, settings.metrics_port)
        await site.start()
        try:
            async with contextlib.aclosing(pool), asyncio.TaskGroup() as tasks:
                for worker in workers:
                    tasks.create_task(worker.keep(gathered), name=f"worker {worker.index}")
                telling = tasks.create_task(_tell(settings, port, runner, operational))
                await stop.wait()
                telling.cancel()
                operational.stopping = True
                log.info("gateway.draining", at_most_s=settings.drain_s)
                await asyncio.gather(*(worker.stop() for worker in workers))
        finally:
            await runner.cleanup()


async def _tell(
    settings: GatewaySettings, port: int, runner: web.ServerRunner, operational: Operational
) -> None:
    """Announces the addresses once all workers are ready."""
    while not await operational.ready():  # noqa: ASYNC110 - asked over HTTP, there is no event
        await asyncio.sleep(POLL_S)
    side = announce.url(*runner.addresses[0][:2])
    http = announce.url(settings.host, port)
    if settings.announce is not None:
        announce.write(
            settings.announce, {"http": http, "metrics": f"{side}/metrics", "probes": side}
        )
    log.info("gateway.serving", http=http, operational=side, workers=settings.workers)
