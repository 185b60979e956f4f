"""Vocabulary of the operator's cluster tests: tiers, demand written by hand, operator processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from spotinference import errors
from spotinference.api import demand, names
from spotinference.api.kinds import DEPLOYMENT, LEASE, POD, TIER, Json, Kind
from tests.support.cluster import LiveCluster, Request
from tests.support.eventually import eventually

RENEW_S = 5.0


async def make_tier(
    cluster: LiveCluster,
    name: str,
    namespace: str,
    *,
    pools: tuple[str, ...] = ("spot-l4",),
    **spec: object,
) -> Json:
    """A small tier of the demo model that falls asleep soon."""
    body: Json = {
        "apiVersion": TIER.api_version,
        "kind": TIER.kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"source": "hf://spotinference/demo"},
            "placement": {"pools": list(pools)},
            "resources": {"cpu": "1", "memory": "1Gi", "sharedMemory": "64Mi"},
            "scaling": {"maxReplicas": 2, "idleTimeout": "3s"},
            **spec,
        },
    }
    return await cluster.kube.apply(TIER, body)


async def drop_tier(cluster: LiveCluster, name: str, namespace: str) -> None:
    await cluster.kube.delete(TIER, name, namespace)


@contextlib.asynccontextmanager
async def asking(
    cluster: LiveCluster, name: str, namespace: str, gateway: str = "hand"
) -> AsyncIterator[None]:
    """Somebody waits for this tier: a demand Lease as a gateway writes it, renewed till the end."""
    tier = await cluster.kube.get(TIER, name, namespace)
    since = datetime.now(UTC)

    async def write() -> None:
        body = demand.lease(
            namespace=namespace,
            tier=name,
            tier_uid=tier["metadata"]["uid"],
            demand=demand.Demand(gateway, 1, since),
            renewed_at=datetime.now(UTC),
        )
        await cluster.kube.apply(LEASE, body)

    async def renew() -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            await write()

    await write()
    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        await cluster.kube.delete(LEASE, names.demand_lease(name, gateway), namespace)


# --- what is there ------------------------------------------------------------------------------


async def children(cluster: LiveCluster, kind: Kind, name: str, namespace: str) -> list[Json]:
    selector = f"{names.LABEL_TIER}={name}"
    return (await cluster.kube.list(kind, namespace, label_selector=selector)).items


async def replicas(cluster: LiveCluster, name: str, namespace: str) -> dict[str, int]:
    """Replicas asked for, by market (`pool/zone`), zeros left out."""
    found = {}
    for item in await children(cluster, DEPLOYMENT, name, namespace):
        labels = item["metadata"]["labels"]
        count = item["spec"]["replicas"]
        if count:
            found[f"{labels[names.LABEL_POOL]}/{labels[names.LABEL_ZONE]}"] = count
    return found


async def engines(cluster: LiveCluster, name: str, namespace: str) -> list[Json]:
    """Engine pods that are not being deleted."""
    pods = await children(cluster, POD, name, namespace)
    return [
        pod
        for pod in pods
        if pod["metadata"]["labels"][names.LABEL_ROLE] == names.ROLE_ENGINE
        and "deletionTimestamp" not in pod["metadata"]
    ]


async def status(cluster: LiveCluster, name: str, namespace: str) -> Json:
    body = await cluster.kube.get(TIER, name, namespace)
    found: Json = body.get("status") or {}
    return found


def condition(of: Json, kind: str) -> Json:
    """One condition of a status, {} when it is not there."""
    return next((c for c in of.get("conditions") or () if c["type"] == kind), {})


async def phase(
    cluster: LiveCluster, name: str, namespace: str, wanted: str, deadline_s: float = 60
) -> Json:
    """The status, once the tier is in this phase."""

    async def check() -> Json:
        now = await status(cluster, name, namespace)
        assert now.get("phase") == wanted, now
        return now

    return await eventually(check, deadline_s, f"{name} is {wanted}")


async def warm(cluster: LiveCluster, name: str, namespace: str) -> None:
    """The tier's cache is filled and its Deployments exist: it sleeps, ready to wake."""

    async def check() -> bool:
        now = await status(cluster, name, namespace)
        made = await children(cluster, DEPLOYMENT, name, namespace)
        assert made, now
        assert len(made) == len(now.get("markets", ())), now
        return True

    await eventually(check, 60, f"{name} has Deployments")


def scale_writes(requests: list[Request], name: str) -> list[Request]:
    """Successful writes to the tier's Deployments by the operator."""
    return [
        r
        for r in requests
        if r.user == "operator"
        and r.resource in {"deployments", "deployments/scale"}
        and r.name.startswith(name)
        and r.code < 300
    ]


# --- operator processes -------------------------------------------------------------------------


@dataclass
class Operator:
    """An operator process of a test's own, with the cluster's operator rights."""

    process: subprocess.Popen[bytes]
    log: Path
    addresses: dict[str, str]

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    async def exit_code(self, deadline_s: float) -> int:
        async def ended() -> bool:
            return self.process.poll() is not None

        await eventually(ended, deadline_s, "the operator exits")
        assert self.process.returncode is not None
        return self.process.returncode

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric with these labels."""
        with urllib.request.urlopen(f"{self.addresses['metrics']}/metrics", timeout=5) as page:
            text = page.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    @property
    def leads(self) -> bool:
        return self.metric("spotinference_operator_leads") == 1.0

    @property
    def writes(self) -> float:
        return self.metric("spotinference_operator_writes_total")

    def said(self, text: str) -> bool:
        return text in self.log.read_text()


@contextlib.contextmanager
def operator(
    cluster: LiveCluster,
    identity: str = "test",
    kubeconfig: Path | None = None,
    program: Path | None = None,
    **settings: str,
) -> Iterator[Operator]:
    """Runs `spotinference operator run` beside the cluster; ended at the end.

    `program`: what Python runs instead of the product as it is. `settings` are its
    SPOTINFERENCE_OPERATOR_* variables, in lower case.
    """
    with tempfile.TemporaryDirectory() as folder:
        log, announced = Path(folder) / "log", Path(folder) / "addresses"
        what = ["-m", "spotinference"] if program is None else [str(program)]
        argv = [sys.executable, *what, "operator", "run"]
        argv += ["--kubeconfig", str(kubeconfig or cluster.paths.operator_kubeconfig)]
        argv += ["--identity", identity]
        argv += ["--host", "127.0.0.1", "--metrics-port", "0", "--probe-port", "0"]
        argv += ["--announce", str(announced), "--hub-endpoint", cluster.state.hub_url]
        with log.open("wb") as stderr:
            environment = {f"SPOTINFERENCE_OPERATOR_{k.upper()}": v for k, v in settings.items()}
            process = subprocess.Popen(
                argv, stderr=stderr, stdin=subprocess.DEVNULL, env={**os.environ, **environment}
            )
        it = Operator(process, log, {})
        try:
            yield it
        finally:
            process.terminate()  # gives the Lease away, so that the next test need not wait
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


async def announced(it: Operator, deadline_s: float = 60) -> Operator:
    """The operator, once it listens."""
    file = it.log.with_name("addresses")

    async def check() -> bool:
        assert it.process.poll() is None, it.log.read_text()
        return file.exists()

    await eventually(check, deadline_s, "the operator announces its addresses")
    it.addresses.update(json.loads(file.read_text()))
    return it


async def leading(it: Operator, deadline_s: float = 60) -> Operator:
    """The operator, once it leads."""
    await announced(it, deadline_s)
    await eventually(lambda: it.leads, deadline_s, "the operator leads")
    return it


async def exists(cluster: LiveCluster, kind: Kind, name: str, namespace: str) -> bool:
    try:
        await cluster.kube.get(kind, name, namespace)
    except errors.NotFound:
        return False
    return True
