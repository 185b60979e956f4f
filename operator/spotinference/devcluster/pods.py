"""One pod on one of our nodes, from its binding to its deletion.

The agent feeds a `PodWorker` with the pod's object as it changes; the worker runs the containers
and keeps the pod's status in the API true. Three ways to end: the containers are done (Jobs),
somebody deletes the pod (graceful, finalised by a delete with grace 0), or the node goes (`lose`:
everything is killed and nothing is said, as on a machine that lost its power).
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import structlog

from spotinference import errors
from spotinference.api.kinds import POD, Json
from spotinference.clients.clock import Clock
from spotinference.clients.kube import Kube
from spotinference.devcluster import mounts, podstatus, shortcuts
from spotinference.devcluster.containers import ContainerRunner, PodBox
from spotinference.devcluster.containerstate import ContainerStatus, State, Terminated, Timing
from spotinference.devcluster.events import Events
from spotinference.devcluster.images import ImageTable
from spotinference.devcluster.mounts import ClaimFolder
from spotinference.devcluster.podstatus import Verdict
from spotinference.devcluster.sources import Missing, Sources

log = structlog.get_logger(__name__)

MOUNT_RETRY_S = 1.0
WRITE_RETRY_S = 0.5
LOST_EXIT_CODE = 137


@dataclass(frozen=True, slots=True)
class PodRuntime:
    """What all pods of an agent share."""

    kube: Kube
    pods_dir: Path
    logs: Path
    ledger: Path
    images: ImageTable
    http: aiohttp.ClientSession
    clock: Clock
    timing: Timing
    events: Events
    claim_folder: ClaimFolder
    base_env: dict[str, str]


class PodWorker:
    def __init__(self, pod: Json, ip: str, host_ip: str, runtime: PodRuntime) -> None:
        self.pod = pod
        self.ip = ip
        self._host_ip = host_ip
        self._runtime = runtime
        self._directory = runtime.pods_dir / pod["metadata"]["uid"]
        self._started_at = runtime.clock.now()
        self._runners: list[ContainerRunner] = []
        self._init = [_first_status(c, pod) for c in pod["spec"].get("initContainers") or []]
        self._main = [_first_status(c, pod) for c in pod["spec"]["containers"]]
        self._networked = False
        self._dirty = asyncio.Event()
        self._terminating = asyncio.Event()
        self._deleted = asyncio.Event()
        self._verdict: Verdict | None = None
        self._grace_s: float | None = None
        self._written: Json | None = None
        self._task: asyncio.Task[None] | None = None
        self.update(pod)

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])

    @property
    def name(self) -> str:
        meta = self.pod["metadata"]
        return f"{meta['namespace']}/{meta['name']}"

    @property
    def deleting(self) -> bool:
        return bool(self.pod["metadata"].get("deletionTimestamp"))

    # --- what the outside tells -------------------------------------------------------------------

    def begin(self, done: Callable[[PodWorker], None]) -> None:
        self._task = asyncio.create_task(self._run_logged(), name=f"pod {self.name}")
        self._task.add_done_callback(lambda _: done(self))

    def update(self, pod: Json) -> None:
        """The object as the API server has it now; an older version than the known is ignored."""
        meta = pod["metadata"]
        if int(meta["resourceVersion"]) < int(self.pod["metadata"]["resourceVersion"]):
            return
        self.pod = pod
        if meta.get("deletionTimestamp"):
            self._end_within(float(meta.get("deletionGracePeriodSeconds") or 0))

    def removed(self) -> None:
        """The object is gone (deleted with grace 0): nothing may be left."""
        self._deleted.set()
        self._end_within(0)

    def shut_down(self, grace_s: float, verdict: Verdict) -> None:
        """The kubelet ends the pod by itself: its phase becomes Failed with this reason."""
        self._verdict = verdict
        self._end_within(min(grace_s, self.pod["spec"].get("terminationGracePeriodSeconds", 30)))

    def kill(self) -> None:
        """SIGKILL to all of its processes, at once and silently."""
        for runner in self._runners:
            runner.kill()

    async def lose(self) -> None:
        """The node is gone: kills, forgets, says nothing."""
        self.kill()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _end_within(self, grace_s: float) -> None:
        if self._grace_s is not None and grace_s >= self._grace_s:
            return
        self._grace_s = grace_s
        self._terminating.set()
        for runner in self._runners:
            runner.stop(grace_s)

    # --- life ------------------------------------------------------------------------------------

    async def _run_logged(self) -> None:
        try:
            await self._run()
        except Exception:
            log.exception("pod.failed", pod=self.name)
        finally:
            self.kill()
            shortcuts.forget(self._directory)
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def _run(self) -> None:
        if _phase(self.pod) not in ("Succeeded", "Failed"):
            if not self._lost_with_former_agent():
                await self._run_containers()
            await self._sync_status()
        await self._finalize()

    async def _run_containers(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._keep_status())
            life = tasks.create_task(self._live())
            ended = tasks.create_task(self._terminating.wait())
            await asyncio.wait([life, ended], return_when=asyncio.FIRST_COMPLETED)
            if not self._runners:
                life.cancel()  # still waiting for a volume: nothing to stop
            await asyncio.wait([life])
            ended.cancel()
            writer.cancel()
        self._close_statuses()

    def _lost_with_former_agent(self) -> bool:
        """A pod that must not restart, and whose containers a former agent ran, has failed."""
        never = self.pod["spec"].get("restartPolicy") == "Never"
        if not never or not any(status.restarts for status in self._main):
            return False
        for status in self._main:
            status.restarts = 0
            status.state = Terminated(
                LOST_EXIT_CODE,
                "ContainerStatusUnknown",
                "the node agent restarted and the container was lost",
                None,
                self._runtime.clock.now(),
            )
        return True

    async def _live(self) -> None:
        """Volumes, init containers one by one, then the main containers together."""
        box = await self._prepared()
        if box is None:
            return
        spec = self.pod["spec"]
        policy = spec.get("restartPolicy", "Always")
        for number, container in enumerate(spec.get("initContainers") or []):
            runner = self._add_runner(container, box, self._init, number)
            await runner.run("OnFailure" if policy == "Always" else policy)
            state = runner.status.state
            if self._terminating.is_set() or not _succeeded(state):
                return
        runners = [
            self._add_runner(container, box, self._main, number)
            for number, container in enumerate(spec["containers"])
        ]
        async with asyncio.TaskGroup() as tasks:
            for runner in runners:
                tasks.create_task(runner.run(policy))

    def _add_runner(
        self, container: Json, box: PodBox, statuses: list[ContainerStatus], number: int
    ) -> ContainerRunner:
        before = statuses[number]
        runner = ContainerRunner(container, box, self._dirty.set, before.restarts)
        runner.status.last = before.last
        statuses[number] = runner.status
        self._runners.append(runner)
        if self._terminating.is_set():
            runner.stop(self._grace_s or 0)
        return runner

    async def _prepared(self) -> PodBox | None:
        """Folders for all volumes; waits with an event until claims are bound and sources exist."""
        runtime = self._runtime
        sources = Sources(runtime.kube, self.pod, self.ip, self._host_ip)
        (self._directory / "home").mkdir(parents=True, exist_ok=True, mode=0o700)
        while True:
            try:
                folders = await mounts.prepare(sources, self._directory, runtime.claim_folder)
                break
            except Missing as error:
                runtime.events.warning(self.pod, "FailedMount", f"MountVolume.SetUp: {error}")
            except errors.SpotinferenceError as error:
                log.warning("pod.mount_retry", pod=self.name, error=str(error))
            self._dirty.set()
            await asyncio.sleep(MOUNT_RETRY_S)
        self._networked = True
        return PodBox(
            pod=self.pod,
            ip=self.ip,
            directory=self._directory,
            logs=runtime.logs,
            ledger=runtime.ledger,
            folders=folders,
            sources=sources,
            images=runtime.images,
            http=runtime.http,
            clock=runtime.clock,
            timing=runtime.timing,
            events=runtime.events,
            base_env=runtime.base_env,
        )

    def _close_statuses(self) -> None:
        """A pod that ends leaves no container waiting: those that never ran did not succeed."""
        now = self._runtime.clock.now()
        if self._verdict is None and not self.pod["metadata"].get("deletionTimestamp"):
            return
        for status in [*self._init, *self._main]:
            if not isinstance(status.state, Terminated):
                status.state = Terminated(
                    LOST_EXIT_CODE, "ContainerStatusUnknown", "the container never ran", None, now
                )
                status.ready = status.started = False

    # --- the API ---------------------------------------------------------------------------------

    async def _keep_status(self) -> None:
        self._dirty.set()
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self._sync_status()

    async def _sync_status(self) -> None:
        """Writes the status as it is now, until that worked or the pod is gone."""
        meta = self.pod["metadata"]
        while not self._deleted.is_set():
            status = podstatus.build(
                self.pod,
                init=self._init,
                main=self._main,
                ip=self.ip if self._networked else None,
                host_ip=self._host_ip,
                started_at=self._started_at,
                now=self._runtime.clock.now(),
                verdict=self._verdict,
            )
            if status == self._written:
                return
            body: Json = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {key: meta[key] for key in ("name", "namespace", "uid")},
                "status": status,
            }
            try:
                self.pod = await self._runtime.kube.apply(POD, body, subresource="status")
            except (errors.NotFound, errors.Conflict):  # gone, or another pod of that name
                return
            except errors.Retryable as error:
                log.warning("pod.status_retry", pod=self.name, error=str(error))
                await asyncio.sleep(WRITE_RETRY_S)
            else:
                self._written = status
                self.update(self.pod)
                return

    async def _finalize(self) -> None:
        """Once the containers are gone: ends a deletion that somebody asked for, now or later."""
        if not self.pod["metadata"].get("deletionTimestamp"):
            self._terminating = asyncio.Event()
            self._grace_s = None
            self.update(self.pod)
            if not self._deleted.is_set():
                await self._terminating.wait()
        meta = self.pod["metadata"]
        while not self._deleted.is_set():
            try:
                await self._runtime.kube.delete(
                    POD, meta["name"], meta["namespace"], uid=meta["uid"], grace_s=0
                )
            except errors.Conflict:
                return
            except errors.Retryable as error:
                log.warning("pod.delete_retry", pod=self.name, error=str(error))
                await asyncio.sleep(WRITE_RETRY_S)
            else:
                return


def _first_status(container: Json, pod: Json) -> ContainerStatus:
    """Waiting; or, when a former agent ran it, lost with that agent and counted as a restart."""
    status = ContainerStatus(container["name"], container.get("image", ""))
    known = (pod.get("status") or {}).get("containerStatuses") or []
    for before in known:
        if before["name"] == status.name and "running" in (before.get("state") or {}):
            status.restarts = int(before.get("restartCount", 0)) + 1
    return status


def _phase(pod: Json) -> str:
    return str((pod.get("status") or {}).get("phase", "Pending"))


def _succeeded(state: State) -> bool:
    return isinstance(state, Terminated) and state.exit_code == 0
