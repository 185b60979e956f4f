"""One container of a pod: started, probed, stopped, restarted with backoff.

`ContainerRunner.run` is the container's whole life. It never writes to the API: it changes its
`ContainerStatus` and says so; `pods.py` turns that into pod status.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import structlog

from spotinference import errors
from spotinference.api.kinds import Json
from spotinference.clients.clock import Clock
from spotinference.devcluster import mounts, podlogs, probes, sandbox, sessions, shortcuts
from spotinference.devcluster.containerstate import (
    Backoff,
    ContainerStatus,
    Running,
    Terminated,
    Timing,
    Waiting,
    restarts,
)
from spotinference.devcluster.events import Events
from spotinference.devcluster.images import Image, ImageTable, ImageUnknown
from spotinference.devcluster.sandbox import Mounts
from spotinference.devcluster.sources import Missing, Sources

log = structlog.get_logger(__name__)

TERMINATION_MESSAGE_BYTES = 4096
LOG_TAIL_BYTES = 2048
"""How much of the log stands in for a termination message (FallbackToLogsOnError)."""
CONFIG_RETRY_S = 2.0
MINIMUM_GRACE_S = 2.0
"""What is left for SIGTERM when preStop has used up the grace period (kubelet)."""
INHERITED = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "SSL_CERT_FILE",
)
"""Of the agent's own environment; everything else comes from the image and the pod."""
ENV_TERMINATION_LOG = "SPOTINFERENCE_TERMINATION_LOG"
DEFAULT_TERMINATION_PATH = "/dev/termination-log"
TEMPORARY = "/tmp"  # noqa: S108 - a container's own


@dataclass(frozen=True, slots=True)
class PodBox:
    """What the containers of one pod share."""

    pod: Json
    ip: str
    directory: Path
    logs: Path
    ledger: Path
    folders: dict[str, Path]
    sources: Sources
    images: ImageTable
    http: aiohttp.ClientSession
    clock: Clock
    timing: Timing
    events: Events
    base_env: dict[str, str]
    """what every container inherits: PATH and the like, the cluster's markers"""


@dataclass(frozen=True, slots=True)
class _Launch:
    argv: list[str]
    env: dict[str, str]
    image: Image
    mounts: Mounts
    termination_file: Path


class ContainerRunner:
    def __init__(self, spec: Json, box: PodBox, changed: Callable[[], None], started: int) -> None:
        self._spec = spec
        self._box = box
        self._changed = changed
        self._backoff = Backoff(box.timing.backoff_s, box.timing.backoff_max_s)
        self._session: sessions.Session | None = None
        self._stopping = asyncio.Event()
        self._stop_task: asyncio.Task[None] | None = None
        self._kill_timer: asyncio.TimerHandle | None = None
        self._launch: _Launch | None = None
        self._execs = 0
        self.status = ContainerStatus(spec["name"], spec.get("image", ""), restarts=started)

    # --- life ------------------------------------------------------------------------------------

    async def run(self, restart_policy: str) -> None:
        """Until the container has ended for good: by its restart policy, or because of `stop`."""
        try:
            while not self._stopping.is_set():
                launch = await self._prepared()
                if launch is None:
                    return
                ended = await self._run_once(launch)
                if self._stopping.is_set() or not restarts(restart_policy, ended.exit_code):
                    return
                await self._back_off(ended)
                self.status.restarts += 1
        finally:
            self.kill()
            if self._kill_timer is not None:
                self._kill_timer.cancel()
            if self._stop_task is not None:
                self._stop_task.cancel()

    async def _prepared(self) -> _Launch | None:
        """Resolves image, environment and arguments; waits with a reason until that works."""
        pulls = 0
        while not self._stopping.is_set():
            try:
                return await self._resolve()
            except ImageUnknown as error:
                pulls += 1
                self._wait_as("ErrImagePull" if pulls == 1 else "ImagePullBackOff", str(error))
                self._box.events.warning(self._box.pod, "Failed", str(error))
                await self._pause(self._box.timing.pull_retry_s)
            except Missing as error:
                self._wait_as("CreateContainerConfigError", str(error))
                self._box.events.warning(self._box.pod, "Failed", f"Error: {error}")
                await self._pause(CONFIG_RETRY_S)
            except errors.SpotinferenceError as error:
                self._wait_as("CreateContainerError", str(error))
                await self._pause(CONFIG_RETRY_S)
        return None

    async def _resolve(self) -> _Launch:
        box, spec = self._box, self._spec
        image = box.images.find(spec.get("image", ""))
        termination = box.directory / "termination" / spec["name"]
        termination.parent.mkdir(parents=True, exist_ok=True)
        termination.write_bytes(b"")
        paths = mounts.of_container(spec, box.folders)
        termination_path = spec.get("terminationMessagePath") or DEFAULT_TERMINATION_PATH
        where = Mounts({**paths.folders, termination_path: termination})
        declared = await box.sources.environment(spec)
        env = sandbox.environment(image, declared, mounts=where, address=box.ip)
        argv = sandbox.argv(
            image,
            command=spec.get("command") or [],
            args=spec.get("args") or [],
            env=declared,
            mounts=where,
            address=box.ip,
        )
        own = {
            "HOSTNAME": box.pod["spec"].get("hostname") or box.pod["metadata"]["name"],
            sessions.MARK_POD: box.pod["metadata"]["uid"],
            ENV_TERMINATION_LOG: str(termination),
        }
        places = {"HOME": str(box.directory / "home")}
        if (temporary := paths.folders.get(TEMPORARY)) is not None:
            places["TMPDIR"] = str(shortcuts.to(temporary))
        return _Launch(argv, {**box.base_env, **places, **env, **own}, image, where, termination)

    async def _run_once(self, launch: _Launch) -> Terminated:
        box, status = self._box, self.status
        started_at = box.clock.now()
        log_file = box.logs / podlogs.file_name(box.pod, status.name, status.restarts)
        podlogs.forget(
            box.logs / podlogs.file_name(box.pod, status.name, status.restarts - podlogs.KEPT)
        )
        self._launch = launch
        try:
            session = await sessions.start(
                launch.argv, env=launch.env, cwd=box.directory, output=log_file
            )
        except OSError as error:
            message = f"cannot start {launch.argv[:1]}: {error.strerror}: {error.filename}"
            return self._end(Terminated(128, "StartError", message, None, box.clock.now()))
        self._session = session
        sessions.record(box.ledger, session)
        status.container_id = f"process://{session.sid}"
        status.state = Running(started_at)
        self._changed()
        box.events.normal(box.pod, "Started", f"Started container {status.name}")
        if self._stopping.is_set():  # asked while we started
            session.kill()
        async with asyncio.TaskGroup() as tasks:
            beside = [
                tasks.create_task(self._probe()),
                tasks.create_task(podlogs.keep_bounded(log_file)),
            ]
            code = await session.wait()
            for task in beside:
                task.cancel()
        self._session = None
        self._stop_timers()
        reason = "Completed" if code == 0 else "Error"
        message = self._termination_message(launch, log_file, code)
        return self._end(Terminated(code, reason, message, started_at, box.clock.now()))

    def _end(self, ended: Terminated) -> Terminated:
        self.status.state = ended
        self.status.started = self.status.ready = False
        self._changed()
        return ended

    async def _back_off(self, ended: Terminated) -> None:
        ran_s = (ended.finished_at - ended.started_at).total_seconds() if ended.started_at else 0.0
        delay_s = self._backoff.after(ran_s)
        self.status.last = ended
        if delay_s > 0:
            pod = self._box.pod["metadata"]
            message = (
                f"back-off {delay_s:g}s restarting failed container={self.status.name} "
                f"pod={pod['name']}_{pod['namespace']}({pod['uid']})"
            )
            self._wait_as("CrashLoopBackOff", message)
            self._box.events.warning(self._box.pod, "BackOff", message)
            await self._pause(delay_s)

    def _wait_as(self, reason: str, message: str) -> None:
        self.status.state = Waiting(reason, message)
        self._changed()

    async def _pause(self, seconds: float) -> None:
        """Sleeps, but wakes when the container is to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _termination_message(self, launch: _Launch, log_file: Path, code: int) -> str:
        with contextlib.suppress(OSError):
            message = podlogs.tail(launch.termination_file, TERMINATION_MESSAGE_BYTES)
            if message:
                return message
        policy = self._spec.get("terminationMessagePolicy", "File")
        if policy == "FallbackToLogsOnError" and code != 0:
            with contextlib.suppress(OSError):
                return podlogs.tail(log_file, LOG_TAIL_BYTES)
        return ""

    # --- probes ----------------------------------------------------------------------------------

    async def _probe(self) -> None:
        spec, status = self._spec, self.status
        target = probes.Target(self._box.ip, _ports(spec), self._box.http, self._execute)
        startup = spec.get("startupProbe")
        if startup is not None and not await self._wait_started(probes.Probe(startup), target):
            return
        status.started = True
        readiness, liveness = spec.get("readinessProbe"), spec.get("livenessProbe")
        if readiness is None:
            status.ready = True
        self._changed()
        async with asyncio.TaskGroup() as tasks:
            if readiness is not None:
                watch = probes.watch(
                    probes.Probe(readiness), target, self._on_ready, initially=False
                )
                tasks.create_task(watch)
            if liveness is not None:
                probe = probes.Probe(liveness)
                report = self._on_alive("Liveness", probe)
                tasks.create_task(probes.watch(probe, target, report, initially=True))

    async def _wait_started(self, probe: probes.Probe, target: probes.Target) -> bool:
        verdict: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        failed = self._on_alive("Startup", probe)

        def report(ok: bool, message: str) -> None:
            if not verdict.done():
                verdict.set_result(ok)
            if not ok:
                failed(ok, message)

        watching = asyncio.ensure_future(probes.watch(probe, target, report))
        try:
            return await verdict
        finally:
            watching.cancel()

    def _on_ready(self, ok: bool, message: str) -> None:
        self.status.ready = ok
        if not ok:
            self._box.events.warning(
                self._box.pod, "Unhealthy", f"Readiness probe failed: {message}"
            )
        self._changed()

    def _on_alive(self, kind: str, probe: probes.Probe) -> Callable[[bool, str], None]:
        def report(ok: bool, message: str) -> None:
            if ok or self._session is None:
                return
            pod, name = self._box.pod, self.status.name
            self._box.events.warning(pod, "Unhealthy", f"{kind} probe failed: {message}")
            self._box.events.normal(
                pod, "Killing", f"Container {name} failed {kind.lower()} probe, will be restarted"
            )
            grace = probe.spec.get("terminationGracePeriodSeconds")
            if grace is None:
                grace = self._box.pod["spec"].get("terminationGracePeriodSeconds", 30)
            self._terminate(float(grace))

        return report

    async def _execute(self, command: Sequence[str], timeout_s: float) -> tuple[int, str]:
        """Runs a command "inside" the container: its environment, its mounts."""
        launch = self._launch
        if launch is None:
            return 126, "the container does not run"
        words = [launch.mounts.rewrite(word) for word in command]
        argv = [*launch.image.programs.get(words[0], (words[0],)), *words[1:]]
        self._execs += 1  # probes and hooks run side by side
        output = self._box.directory / f"exec-{self.status.name}-{self._execs}"
        try:
            session = await sessions.start(
                argv, env=launch.env, cwd=self._box.directory, output=output
            )
        except OSError as error:
            return 127, f"{argv[0]}: {error.strerror}"
        try:
            async with asyncio.timeout(timeout_s):
                code = await session.wait()
            return code, podlogs.tail(output, probes.EXEC_OUTPUT_LIMIT)
        finally:
            session.kill()
            output.unlink(missing_ok=True)

    # --- stopping --------------------------------------------------------------------------------

    def stop(self, grace_s: float) -> None:
        """preStop, SIGTERM, and SIGKILL when the grace period is over; again to shorten it."""
        self._stopping.set()
        self._terminate(grace_s)

    def kill(self) -> None:
        """SIGKILL to everything of the container, now."""
        if self._session is not None:
            self._session.kill()

    def _terminate(self, grace_s: float) -> None:
        if self._session is None:
            return
        if grace_s <= 0:
            self.kill()
            return
        loop = asyncio.get_running_loop()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self._kill_timer = loop.call_later(grace_s, self._grace_is_over)
        if self._stop_task is None:
            self._stop_task = loop.create_task(self._ask_to_stop(self._session, grace_s))

    def _grace_is_over(self) -> None:
        hook = self._stop_task
        if hook is not None and not hook.done():  # preStop has used it all
            hook.cancel()
            if self._session is not None:
                self._session.signal_leader(signal.SIGTERM)
            loop = asyncio.get_running_loop()
            self._kill_timer = loop.call_later(MINIMUM_GRACE_S, self.kill)
        else:
            self.kill()

    async def _ask_to_stop(self, session: sessions.Session, grace_s: float) -> None:
        hook = (self._spec.get("lifecycle") or {}).get("preStop")
        if hook is not None and grace_s > 0:
            await self._pre_stop(hook, grace_s)
        session.signal_leader(signal.SIGTERM)

    async def _pre_stop(self, hook: Json, grace_s: float) -> None:
        try:
            if "sleep" in hook:
                await asyncio.sleep(min(float(hook["sleep"]["seconds"]), grace_s))
            elif "exec" in hook:
                await self._execute(hook["exec"]["command"], grace_s)
            elif "httpGet" in hook:
                target = probes.Target(
                    self._box.ip, _ports(self._spec), self._box.http, self._execute
                )
                async with asyncio.timeout(grace_s):
                    await probes.http_get(hook["httpGet"], target)
        except TimeoutError:
            self._box.events.warning(self._box.pod, "FailedPreStopHook", "preStop timed out")

    def _stop_timers(self) -> None:
        if self._kill_timer is not None:
            self._kill_timer.cancel()
            self._kill_timer = None
        if self._stop_task is not None:
            self._stop_task.cancel()
            self._stop_task = None


def _ports(spec: Json) -> dict[str, int]:
    return {
        port["name"]: int(port["containerPort"])
        for port in spec.get("ports") or []
        if port.get("name")
    }
