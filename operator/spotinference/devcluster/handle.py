"""A program's handle on an embedded cluster: bring one up, look at it, disturb it, take it down.

Used by the demo and the benchmarks. It goes through the same command line and files as a person,
so what it can do, `spotinference dev …` and `kubectl` can do too.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from spotinference import errors
from spotinference.api import names
from spotinference.api.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    NODE,
    POD,
    POOL,
    SECRET,
    TIER,
    Json,
    Kind,
)
from spotinference.clients.kube import Kube
from spotinference.devcluster import paths as cluster_paths
from spotinference.devcluster import state as cluster_state

FIELD_MANAGER = "spotinference-dev"
COMMAND_TIMEOUT_S = 300.0
POLL_S = 0.2
MUTATING = frozenset({"create", "update", "patch", "delete", "deletecollection"})
_APPLICABLE: dict[str, Kind] = {
    kind.kind: kind for kind in (TIER, POOL, CONFIG_MAP, SECRET, DEPLOYMENT)
}


@dataclass(frozen=True, slots=True)
class Write:
    """One mutating request, from the API server's audit log."""

    user: str
    verb: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int
    at: str


@dataclass(slots=True)
class ClusterHandle:
    name: str
    state: cluster_state.ClusterState
    kube: Kube

    @property
    def paths(self) -> cluster_paths.ClusterPaths:
        return cluster_paths.cluster(self.name)

    @property
    def gateway_url(self) -> str:
        return self.state.gateway_url

    @property
    def api_key(self) -> str:
        return self.state.api_key

    # --- resources -------------------------------------------------------------------------------

    async def apply(self, manifest: str | Json, namespace: str = "default") -> Json:
        """Server-side apply of one YAML document or object."""
        body: Json = yaml.safe_load(manifest) if isinstance(manifest, str) else manifest
        kind = _APPLICABLE[body["kind"]]
        if kind.namespaced:
            body.setdefault("metadata", {}).setdefault("namespace", namespace)
        return await self.kube.apply(kind, body)

    async def tier(self, name: str, namespace: str = "default") -> Json:
        return await self.kube.get(TIER, name, namespace)

    async def pool(self, name: str) -> Json:
        return await self.kube.get(POOL, name)

    async def tier_until(
        self,
        name: str,
        check: Callable[[Json], bool],
        *,
        deadline_s: float,
        namespace: str = "default",
        look: Callable[[Json], None] | None = None,
    ) -> Json:
        """Polls the tier until `check` holds; `look` sees every state. Errors quote the last one."""
        last: Json = {}
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    last = await self.tier(name, namespace)
                    if look is not None:
                        look(last)
                    if check(last):
                        return last
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            status = json.dumps(last.get("status", {}), indent=1)
            raise errors.ApiUnavailable(
                f"tier {name} did not get there within {deadline_s:.0f} s; its status: {status}. "
                f"Look at `spotinference dev logs operator --name {self.name}`."
            ) from error

    async def engine_pods(self, tier: str, namespace: str = "default") -> list[Json]:
        selector = f"{names.LABEL_TIER}={tier},{names.LABEL_ROLE}={names.ROLE_ENGINE}"
        return (await self.kube.list(POD, namespace, label_selector=selector)).items

    async def deployments(self, tier: str, namespace: str = "default") -> list[Json]:
        selector = f"{names.LABEL_TIER}={tier}"
        return (await self.kube.list(DEPLOYMENT, namespace, label_selector=selector)).items

    async def gpu_nodes(self) -> list[Json]:
        nodes = (await self.kube.list(NODE)).items
        return [n for n in nodes if "nvidia.com/gpu" in n.get("status", {}).get("capacity", {})]

    # --- the world around it ---------------------------------------------------------------------

    async def reclaim(self, node: str, notice: str | None = None) -> None:
        """The provider takes the node: at once, or after a notice such as `30s`."""
        await self.dev("reclaim", node, *(["--notice", notice] if notice else []))

    async def set_capacity(self, pool: str, zone: str, capacity: int) -> None:
        await self.dev("market", f"{pool}/{zone}", "--capacity", str(capacity))

    async def dev(self, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """`spotinference dev ARGUMENTS --name THIS`; its output."""
        return await command("dev", *arguments, "--name", self.name, timeout_s=timeout_s)

    async def kubectl(self, *arguments: str) -> str:
        return await command("dev", "--name", self.name, "kubectl", *arguments)

    # --- what was written ------------------------------------------------------------------------

    def audit_mark(self) -> int:
        """A position in the audit log; `writes_since` reads from it."""
        log = Path(self.state.audit_log)
        return log.stat().st_size if log.exists() else 0

    def writes_since(self, mark: int) -> list[Write]:
        """Mutating requests by operator and gateway since the mark, in order."""
        with Path(self.state.audit_log).open("rb") as log:
            log.seek(mark)
            lines = log.read().splitlines()
        events = [json.loads(line) for line in lines if line.endswith(b"}")]
        return [_write(event) for event in events if _is_ours(event)]

    async def close(self) -> None:
        await self.kube.close()


def asleep(tier: Json) -> bool:
    """At zero replicas, its cache complete: the next request wakes it."""
    status = tier.get("status", {})
    conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
    return status.get("phase") == "Asleep" and conditions.get("CacheReady") == "True"


def _is_ours(event: Any) -> bool:
    user = event["user"]["username"]
    return (
        event["verb"] in MUTATING
        and event.get("stage") == "ResponseComplete"
        and user.startswith("system:serviceaccount:spotinference:")
        and "objectRef" in event
        and event["objectRef"].get("resource") != "selfsubjectaccessreviews"
    )


def _write(event: Any) -> Write:
    ref = event["objectRef"]
    return Write(
        user=event["user"]["username"].rpartition(":")[2].removeprefix("spotinference-"),
        verb=event["verb"],
        resource=ref["resource"],
        subresource=ref.get("subresource", ""),
        namespace=ref.get("namespace", ""),
        name=ref.get("name", ""),
        code=int(event.get("responseStatus", {}).get("code", 0)),
        at=event["requestReceivedTimestamp"],
    )


async def command(*arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """Runs our own command line; its output, or `ApiUnavailable` with what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "spotinference",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise errors.ApiUnavailable(f"{arguments}: not done within {timeout_s:.0f} s") from error
    text = output.decode(errors="replace")
    if process.returncode != 0:
        raise errors.ApiUnavailable(
            f"`spotinference {' '.join(arguments)}` failed ({process.returncode}):\n{text}"
        )
    return text


async def open_cluster(name: str) -> ClusterHandle:
    """A handle on a cluster that runs; `NotFound` when there is none of that name."""
    where = cluster_paths.cluster(name)
    found = cluster_state.load(where)
    if found is None:
        raise errors.NotFound(
            f"no cluster {name!r}; start one: spotinference dev up --name {name} --detach"
        )
    kube = await Kube.connect(field_manager=FIELD_MANAGER, kubeconfig=where.kubeconfig)
    return ClusterHandle(name, found, kube)


@asynccontextmanager
async def cluster(
    name: str, *, engine: str = "sim", topology: str | None = None, keep: bool = False
) -> AsyncIterator[ClusterHandle]:
    """A cluster of this name from `up` to `down` (unless `keep`). `topology` is YAML text."""
    arguments = ["dev", "up", "--name", name, "--engine", engine, "--detach"]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        if topology is not None:
            file.write(topology)
            file.flush()
            arguments += ["--topology", file.name]
        await command(*arguments)
    try:
        handle = await open_cluster(name)
        try:
            yield handle
        finally:
            await handle.close()
    finally:
        if not keep:
            await command("dev", "down", "--name", name)
