"""How many gateway processes share the limits: the pods of our own Deployment, by a watch.

A gateway may read pods anyway (engines), so this needs no further right.
"""

from __future__ import annotations

from spotinference.api.kinds import Json
from spotinference.clients.clock import Clock
from spotinference.core.limits import Processes

HTTP_PORT = "http"


class Peers:
    """Fed by a reflector of the gateway's pods; each runs `processes_per_pod`."""

    def __init__(
        self, clock: Clock, processes: Processes, *, own_pod: str, processes_per_pod: int
    ) -> None:
        self._clock = clock
        self._processes = processes
        self.own = own_pod
        self.addresses: dict[str, str] = {}
        """base URLs of the gateways that answer, by pod, this one included"""
        self._per_pod = processes_per_pod
        self._pods: set[str] = set()
        self._started = False
        processes.note(clock.monotonic(), processes_per_pod)

    def changed(self, before: Json | None, after: Json | None) -> None:
        body = after or before
        assert body is not None
        name = body["metadata"]["name"]
        if after is None or not _may_serve(after):
            self._pods.discard(name)
        else:
            self._pods.add(name)
        address = _address(after) if after is not None else None
        if address is None:
            self.addresses.pop(name, None)
        else:
            self.addresses[name] = address
        if name == self.own and after is not None and _restarted(after):
            self._start(beside_others=True)  # what was admitted before the crash still counts
        self._note()

    def synced(self) -> None:
        """All pods that were there when we came have been reported."""
        self._start(beside_others=bool(self._pods - {self.own}))

    def after_a_crash(self) -> None:
        """We take the place of a process that died: what that one admitted still counts."""
        self._start(beside_others=True)

    def _start(self, *, beside_others: bool) -> None:
        if not self._started:
            self._started = True
            self._processes.started(self._clock.monotonic(), beside_others=beside_others)

    def _note(self) -> None:
        pods = len(self._pods | {self.own})
        self._processes.note(self._clock.monotonic(), pods * self._per_pod)


def _may_serve(pod: Json) -> bool:
    """It has a node: it may serve before its status says so. Without one it waits for a place."""
    phase = (pod.get("status") or {}).get("phase")
    return bool(pod["spec"].get("nodeName")) and phase not in {"Succeeded", "Failed"}


def _address(pod: Json) -> str | None:
    """Where a pod answers; None while it is not Ready, or is going."""
    status = pod.get("status") or {}
    ready = any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in status.get("conditions") or ()
    )
    ports = [
        port["containerPort"]
        for container in pod["spec"].get("containers") or ()
        for port in container.get("ports") or ()
        if port.get("name") == HTTP_PORT
    ]
    ip = status.get("podIP")
    if not (ready and ports and ip) or "deletionTimestamp" in pod["metadata"]:
        return None
    return f"http://{f'[{ip}]' if ':' in ip else ip}:{ports[0]}"


def _restarted(pod: Json) -> bool:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return any(status.get("restartCount") for status in statuses)
