"""One embedded cluster, composed: control plane, node agent, hub, operator, gateway.

Run as a process of its own: `python -m spotinference.devcluster.cluster`, options as JSON on
stdin. `cli/dev.py` starts it and follows cluster.json. When it ends, nothing of it is left; when
it is killed, `clean` removes what it left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
from datetime import UTC, datetime
from typing import Any

import structlog

from spotinference import errors, logs
from spotinference.clients.kube import Kube
from spotinference.devcluster import bootstrap, leftovers, models, network, processes, state
from spotinference.devcluster import paths as cluster_paths
from spotinference.devcluster.agent import NodeAgent
from spotinference.devcluster.controlplane import ControlPlane
from spotinference.devcluster.hub import HubServer
from spotinference.devcluster.options import Options
from spotinference.devcluster.processes import ManagedProcess
from spotinference.devcluster.supervisor import Action, ControlApi, Keeper

log = structlog.get_logger(__name__)

OWN_PROCESSES_DEADLINE_S = 120.0
"""Operator and gateway import and list within 3 s; a busy machine takes several times that."""
STOP_GRACE_S = 2.0
"""Nothing in a cluster that is thrown away is worth waiting for."""


class Cluster:
    """The composition root of one cluster."""

    def __init__(self, options: Options, paths: cluster_paths.ClusterPaths) -> None:
        self.options = options
        self.paths = paths
        self.block = network.allocate(options.name)
        self.control_plane = ControlPlane(paths, options.binaries, self.block)
        self.state = state.ClusterState(
            name=options.name,
            engine=options.engine,
            supervisor_pid=os.getpid(),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            apiserver_url=self.control_plane.url,
            control_token=secrets.token_urlsafe(24),
            audit_log=str(paths.audit_log),
            kubeconfig=str(paths.kubeconfig),
        )
        self.control = ControlApi(self.block.control, self.state.control_token, self._actions())
        self.state.control_url = self.control.url
        self.keepers: dict[str, Keeper] = {}
        self.agent: NodeAgent | None = None
        self._hub: HubServer | None = None
        self._kube: Kube | None = None

    async def run(self) -> None:
        """Up, then serving until cancelled, then down: one call, so that nothing can be left."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._up(tasks)
                self._say("", stage="ready")
                log.info("cluster.ready", name=self.options.name, gateway=self.state.gateway_url)
        finally:
            self._say("", stage="stopping")
            await self._down()

    # --- up --------------------------------------------------------------------------------------

    async def _up(self, tasks: asyncio.TaskGroup) -> None:
        self._say("control plane")
        self.control_plane.prepare()
        self.state.api_key = bootstrap.api_key(self.paths)
        await self.control.start()
        await self.control_plane.start()
        self._say("resources and rights")
        kube = await Kube.connect(
            field_manager="spotinference-dev", kubeconfig=self.control_plane.agent_kubeconfig
        )
        self._kube = kube
        await bootstrap.resources(kube, self.options.topology)
        await bootstrap.credentials(
            kube, self.paths, self.control_plane.url, self.control_plane.ca_file
        )
        for process in self.control_plane.processes:
            self._keep(tasks, Keeper(process, grace_s=3.0))
        self._say("node agent and model hub")
        await self._start_hub()
        await self._start_agent(tasks, kube)
        self._say("operator and gateway")
        await self._start_own(tasks)

    async def _start_hub(self) -> None:
        models.provide(self.options, self.paths.hub)
        self._hub = HubServer(self.paths.hub, self.block.hub, 0, self.paths.hub_log)
        await self._hub.start()
        self.state.hub_url = self._hub.url

    async def _start_agent(self, tasks: asyncio.TaskGroup, kube: Kube) -> None:
        self.agent = NodeAgent(
            kube,
            self.paths,
            self.options.topology,
            models.images_of(self.options),
            addresses=self.block.pods(),
            host_ip=self.block.host,
        )
        tasks.create_task(self.agent.run(), name="node agent")
        await self.agent.wait_ready()

    async def _start_own(self, tasks: asyncio.TaskGroup) -> None:
        """Operator and gateway as processes, each with its own rights; both start at once."""
        keepers = []
        if self.options.operator:
            keepers.append(self._operator())
        if self.options.gateway:
            keepers.append(self._gateway())
        for keeper in keepers:
            await keeper.start()
            self._keep(tasks, keeper)
        for keeper in keepers:
            await keeper.wait_healthy(OWN_PROCESSES_DEADLINE_S)

    def _operator(self) -> Keeper:
        host = self.block.operator
        metrics, probes = network.free_port(host), network.free_port(host)
        self.state.operator_metrics_url = f"http://{host}:{metrics}/metrics"
        self.state.operator_probes_url = f"http://{host}:{probes}"
        argv = self._own("operator", "run")
        argv += ["--kubeconfig", str(self.paths.operator_kubeconfig)]
        argv += ["--namespace", bootstrap.SYSTEM_NAMESPACE, "--identity", "dev-operator-0"]
        argv += ["--host", host, "--metrics-port", str(metrics), "--probe-port", str(probes)]
        if self.state.hub_url:
            argv += ["--hub-endpoint", self.state.hub_url]
        return self._keeper("operator", argv, f"http://{host}:{probes}/readyz")

    def _gateway(self) -> Keeper:
        host = self.block.gateway
        port = self.options.gateway_port or network.free_port(host)
        metrics = network.free_port(host)
        self.state.gateway_url = f"http://{host}:{port}"
        self.state.gateway_metrics_url = f"http://{host}:{metrics}/metrics"
        argv = self._own("gateway", "run")
        argv += ["--kubeconfig", str(self.paths.gateway_kubeconfig)]
        argv += ["--keys-file", str(self.paths.keys_file), "--id", "dev-gateway-0"]
        argv += ["--host", host, "--port", str(port), "--metrics-port", str(metrics)]
        return self._keeper("gateway", argv, f"http://{host}:{port}/readyz")

    def _own(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "spotinference", *arguments]

    def _keeper(self, name: str, argv: list[str], health_url: str) -> Keeper:
        process = ManagedProcess(name, argv, paths=self.paths, env=processes.python_env())
        return Keeper(process, health_url=health_url, grace_s=STOP_GRACE_S)

    def _keep(self, tasks: asyncio.TaskGroup, keeper: Keeper) -> None:
        self.keepers[keeper.name] = keeper
        tasks.create_task(keeper.run(), name=f"keep {keeper.name}")

    def _say(self, doing: str, *, stage: state.Stage = "starting") -> None:
        """Writes cluster.json, which is what everybody outside sees."""
        self.state.stage = stage
        self.state.doing = doing
        self.state.pids = {name: keeper.process.pid for name, keeper in self.keepers.items()}
        state.save(self.paths, self.state)
        if doing:
            log.info("cluster.starting", step=doing)

    # --- commands --------------------------------------------------------------------------------

    def _actions(self) -> dict[str, Action]:
        return {
            "status": self._status,
            "reclaim": self._reclaim,
            "silence": self._silence,
            "market": self._market,
            "process": self._process,
        }

    async def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        rows = {
            name: {
                "pid": keeper.process.pid,
                "alive": keeper.process.alive,
                "healthy": await keeper.healthy(),
                "restarts": keeper.restarts,
                "log": str(keeper.process.log),
            }
            for name, keeper in self.keepers.items()
        }
        nodes = self.agent.status() if self.agent is not None else {"nodes": [], "markets": []}
        return {"processes": rows, **nodes}

    async def _reclaim(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"node": NAME, "notice": seconds or null}`; null: at once, without any sign."""
        notice = body.get("notice")
        notice_s = None if notice is None else float(notice)
        await self._running_agent().reclaim(str(body["node"]), notice_s)
        return {}

    async def _silence(self, body: dict[str, Any]) -> dict[str, Any]:
        """The node's machine dies and nobody says so: its object stays, heartbeats stop."""
        await self._running_agent().silence(str(body["node"]))
        return {}

    def _running_agent(self) -> NodeAgent:
        if self.agent is None:
            raise errors.ConfigInvalid("the cluster is still starting: there are no nodes yet")
        return self.agent

    async def _market(self, body: dict[str, Any]) -> dict[str, Any]:
        pool, zone, capacity = str(body["pool"]), str(body["zone"]), int(body["capacity"])
        self.options.topology.market(pool, zone)
        if capacity < 0:
            raise errors.ConfigInvalid(f"--capacity {capacity}: must not be negative")
        await self._running_agent().set_capacity(pool, zone, capacity)
        return {}

    async def _process(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"name": …, "do": start|stop|restart|kill|crash}`; a crash comes back, a kill does not."""
        keeper = self.keepers.get(str(body["name"]))
        if keeper is None:
            known = ", ".join(self.keepers)
            raise errors.ConfigInvalid(f"no process {body['name']!r}; this cluster runs {known}")
        match body["do"]:
            case "start":
                await keeper.start()
            case "stop":
                await keeper.hold()
            case "restart":
                await keeper.restart()
            case "kill":
                await keeper.kill(stay_down=True)
            case "crash":
                await keeper.kill(stay_down=False)
            case other:
                raise errors.ConfigInvalid(f"{other!r}: use start, stop, restart, kill or crash")
        if body["do"] in {"start", "restart"}:
            if keeper.process in self.control_plane.processes:
                await self.control_plane.wait_ready(OWN_PROCESSES_DEADLINE_S)
            await keeper.wait_healthy(OWN_PROCESSES_DEADLINE_S)
        self._say("", stage="ready")
        return {"pid": keeper.process.pid}

    # --- down ------------------------------------------------------------------------------------

    async def _down(self) -> None:
        """Our own processes get a short grace; the data of the rest dies with the cluster."""
        own = [k for k in self.keepers.values() if k.process not in self.control_plane.processes]
        await asyncio.gather(*(keeper.stop() for keeper in own))
        if self._hub is not None:
            await self._hub.stop()
        if self._kube is not None:
            await self._kube.close()
        await self.control_plane.kill()
        await self.control.stop()
        leftovers.clean(self.paths)
        self.block.release()


def main() -> None:
    """Reads options from stdin; exit 0 after a wanted end, 1 with a sentence otherwise."""
    options = Options.model_validate_json(sys.stdin.read())
    logs.setup(json_lines=True)
    paths = cluster_paths.cluster(options.name)
    try:
        # Somebody who only looks whether it runs holds the lock for a moment.
        with state.Ownership(paths, patience_s=1.0):
            left = leftovers.clean(paths)
            shutil.rmtree(paths.root, ignore_errors=True)
            paths.make()
            with contextlib.suppress(FileNotFoundError):  # our own log, opened before all this
                paths.start_log.rename(paths.log("supervisor"))
            if left:
                log.info("leftovers.killed", pids=left)
            asyncio.run(_run(options, paths))
    except* errors.Bug:
        raise  # with its traceback
    except* errors.SpotinferenceError as group:
        for error in _leaves(group):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


async def _run(options: Options, paths: cluster_paths.ClusterPaths) -> None:
    task = asyncio.create_task(Cluster(options, paths).run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _leaves(group: BaseExceptionGroup[errors.SpotinferenceError]) -> list[BaseException]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]


if __name__ == "__main__":
    main()
