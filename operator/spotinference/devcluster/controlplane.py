"""The real control plane as four local processes: etcd, API server, controllers, scheduler.

RBAC and ServiceAccount admission are on, everything between them is mutual TLS. Starts in about
three seconds; a failure names the process, its log file and the log's last lines.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import yaml

from spotinference import errors
from spotinference.devcluster import kubeconfig, network
from spotinference.devcluster.certificates import Authority, Pair, signing_key
from spotinference.devcluster.paths import ClusterPaths
from spotinference.devcluster.processes import ManagedProcess
from spotinference.devcluster.state import write_private

READY_DEADLINE_S = 120.0
"""Three seconds on an idle machine; a machine that compiles meanwhile is ten times slower."""
READY_POLL_S = 0.1
PATIENT = frozenset({"controller-manager", "scheduler"})
"""Give up on an API server that is not healthy after 10 s, which on a busy machine it is not."""
START_TRIES = 5
SERVICE_CIDR = "10.96.0.0/16"
CLIENT_QPS, CLIENT_BURST = "200", "400"
"""The controllers' own throttle (20/s) would dominate every wake of many tiers at once."""
AUDIT_MAX_MB, AUDIT_BACKUPS = "500", "2"

CONTROLLERS_OFF = (
    # They refuse loopback addresses and log it for ever: pods here live on 127.x.
    "endpoints-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    # No cloud, no attachable disks, no kubelet certificates, no bootstrap tokens here.
    "node-ipam-controller",
    "persistentvolume-attach-detach-controller",
    "certificatesigningrequest-signing-controller",
    "certificatesigningrequest-approving-controller",
    "certificatesigningrequest-cleaner-controller",
)

# Reads of the control plane's own parts are noise; everything else tells who used which right.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "None",
            "verbs": ["get", "list", "watch"],
            "users": [
                "system:apiserver",
                "system:kube-controller-manager",
                "system:kube-scheduler",
            ],
        },
        {
            "level": "None",
            "verbs": ["get", "list", "watch"],
            "userGroups": ["system:serviceaccounts:kube-system"],
        },
        {"level": "None", "nonResourceURLs": ["/*"]},
        {"level": "Metadata"},
    ],
}


class ControlPlane:
    """Owns the four processes of one cluster, its authorities and the admin's kubeconfig."""

    def __init__(
        self, paths: ClusterPaths, binaries: Mapping[str, Path], block: network.Block
    ) -> None:
        self._paths = paths
        self._binaries = binaries
        self._block = block
        self.url = f"https://{block.apiserver}:{network.free_port(block.apiserver)}"
        self.ca_file: Path = paths.pki / "kubernetes.crt"
        self.agent_kubeconfig = self._component_config("agent")
        self.processes: list[ManagedProcess] = []
        self._admin: Pair | None = None
        self._tries: dict[str, int] = {}

    def prepare(self) -> None:
        """Writes certificates, kubeconfigs and the audit policy, and plans the processes."""
        paths, block = self._paths, self._block
        store = Authority("etcd", paths.pki)
        main = Authority("kubernetes", paths.pki)
        self.ca_file = main.file
        signing_key(paths.pki / "service-accounts.key")
        policy = paths.pki / "audit-policy.yaml"
        write_private(policy, yaml.safe_dump(AUDIT_POLICY))
        self._admin = main.client("admin", "spotinference-admin", ("system:masters",))
        identities = {
            paths.kubeconfig: self._admin,
            # A name of its own, so that the audit log tells its writes from a person's.
            self.agent_kubeconfig: main.client("agent", "spotinference-agent", ("system:masters",)),
            self._component_config("controller-manager"): main.client(
                "controller-manager", "system:kube-controller-manager"
            ),
            self._component_config("scheduler"): main.client("scheduler", "system:kube-scheduler"),
        }
        for file, pair in identities.items():
            kubeconfig.with_certificate(file, paths.name, self.url, main.file, pair)
        etcd_url = f"https://{block.etcd}:{network.free_port(block.etcd)}"
        self.processes = [
            self._process("etcd", "etcd", self._etcd_flags(store, etcd_url)),
            self._process(
                "apiserver", "kube-apiserver", self._apiserver_flags(store, main, etcd_url, policy)
            ),
            self._process(
                "controller-manager", "kube-controller-manager", self._controller_flags()
            ),
            self._process("scheduler", "kube-scheduler", self._scheduler_flags()),
        ]

    async def start(self) -> None:
        """All four at once: each waits for the one below it. Returns when ready."""
        for process in self.processes:
            await process.start()
        await self.wait_ready(READY_DEADLINE_S)

    async def wait_ready(self, deadline_s: float) -> None:
        """Until the API server says it is ready, its own start hooks (RBAC roles) included."""
        assert self._admin is not None
        context = ssl.create_default_context(cafile=str(self.ca_file))
        context.load_cert_chain(self._admin.cert, self._admin.key)
        until = time.monotonic() + deadline_s
        last = "no answer"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while time.monotonic() < until:
                await self._keep_alive()
                try:
                    async with session.get(f"{self.url}/readyz", ssl=context) as response:
                        if response.status == 200:
                            return
                        last = f"/readyz {response.status}: {(await response.text())[-300:]}"
                except (aiohttp.ClientError, TimeoutError) as error:
                    last = f"{type(error).__name__}: {error}"
                await asyncio.sleep(READY_POLL_S)
        server = self.processes[1]
        raise errors.ApiUnavailable(server.failure(f"not ready after {deadline_s:.0f} s ({last})"))

    async def kill(self) -> None:
        """At once: the data dies with the cluster, so a graceful end would be wasted time."""
        await asyncio.gather(*(process.kill() for process in self.processes))

    async def _keep_alive(self) -> None:
        """`ApiUnavailable` when a process ended; the upper two wait 10 s only, and get more tries."""
        for process in self.processes:
            if not process.pid or process.alive:
                continue
            self._tries[process.name] = tries = self._tries.get(process.name, 0) + 1
            if process.name not in PATIENT or tries > START_TRIES:
                raise errors.ApiUnavailable(process.failure("ended while starting"))
            await process.start()

    def _component_config(self, name: str) -> Path:
        return self._paths.pki / f"{name}.kubeconfig"

    def _process(self, name: str, binary: str, flags: dict[str, str]) -> ManagedProcess:
        argv = [str(self._binaries[binary]), *(f"--{key}={value}" for key, value in flags.items())]
        return ManagedProcess(name, argv, paths=self._paths)

    def _etcd_flags(self, store: Authority, url: str) -> dict[str, str]:
        address = self._block.etcd
        pair = store.server("etcd-server", address)
        peer_url = f"https://{address}:{network.free_port(address)}"
        return {
            "name": "default",
            "data-dir": str(self._paths.etcd),
            "unsafe-no-fsync": "true",  # the data dies with the cluster
            "listen-client-urls": url,
            "advertise-client-urls": url,
            "listen-peer-urls": peer_url,
            "initial-advertise-peer-urls": peer_url,
            "initial-cluster": f"default={peer_url}",
            "client-cert-auth": "true",
            "trusted-ca-file": str(store.file),
            "cert-file": str(pair.cert),
            "key-file": str(pair.key),
            "peer-client-cert-auth": "true",
            "peer-trusted-ca-file": str(store.file),
            "peer-cert-file": str(pair.cert),
            "peer-key-file": str(pair.key),
            "log-level": "warn",
        }

    def _apiserver_flags(
        self, store: Authority, main: Authority, etcd_url: str, policy: Path
    ) -> dict[str, str]:
        names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
        server = main.server("apiserver", self._block.apiserver, names)
        client = store.client("apiserver-etcd-client", "kube-apiserver")
        accounts = str(self._paths.pki / "service-accounts.key")
        return {
            "bind-address": self._block.apiserver,
            "advertise-address": self._block.apiserver,
            "secure-port": self.url.rsplit(":", 1)[1],
            "etcd-servers": etcd_url,
            "etcd-cafile": str(store.file),
            "etcd-certfile": str(client.cert),
            "etcd-keyfile": str(client.key),
            "tls-cert-file": str(server.cert),
            "tls-private-key-file": str(server.key),
            "client-ca-file": str(main.file),
            "authorization-mode": "RBAC",
            "anonymous-auth": "false",
            "allow-privileged": "false",
            "service-cluster-ip-range": SERVICE_CIDR,
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": accounts,
            "service-account-signing-key-file": accounts,
            "endpoint-reconciler-type": "none",  # loopback addresses are refused in endpoints
            "audit-policy-file": str(policy),
            "audit-log-path": str(self._paths.audit_log),
            "audit-log-maxsize": AUDIT_MAX_MB,
            "audit-log-maxbackup": AUDIT_BACKUPS,
            "profiling": "false",
        }

    def _controller_flags(self) -> dict[str, str]:
        own = str(self._component_config("controller-manager"))
        off = ",".join(f"-{name}" for name in CONTROLLERS_OFF)
        return {
            "kubeconfig": own,
            "controllers": f"*,{off}",
            "use-service-account-credentials": "true",
            "service-account-private-key-file": str(self._paths.pki / "service-accounts.key"),
            "root-ca-file": str(self.ca_file),
            "leader-elect": "false",
            "secure-port": "0",
            "kube-api-qps": CLIENT_QPS,
            "kube-api-burst": CLIENT_BURST,
        }

    def _scheduler_flags(self) -> dict[str, str]:
        return {
            "kubeconfig": str(self._component_config("scheduler")),
            "leader-elect": "false",
            "secure-port": "0",
            "kube-api-qps": CLIENT_QPS,
            "kube-api-burst": CLIENT_BURST,
        }
