"""Where the volumes of pods that find no node lie.

An autoscaler launches no node for a pod whose volume is in another zone, and the scheduler, which
has no such node, only speaks of nodes that do not match: nobody says why the pod waits. So for pods
that are unschedulable (and only for them) their claims and volumes are read, once per claim.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from spotinference import errors
from spotinference.api import names
from spotinference.api.kinds import POD, PV, PVC, Json
from spotinference.clients.kube import Kube
from spotinference.controller.store import Store, tier_of
from spotinference.core.observed import TierRef
from spotinference.core.zones import volume_zones

log = structlog.get_logger(__name__)

EVERY_S = 5.0
MAX_READ_AT_ONCE = 16
MAX_REMEMBERED = 10_000


class VolumeZones:
    def __init__(self, kube: Kube, store: Store, on_change: Callable[[TierRef], None]) -> None:
        self._kube = kube
        self._store = store
        self._on_change = on_change
        self._known: dict[str, frozenset[str] | None] = {}
        """uid of a pod to the zones in which all its volumes can be mounted; None: in any"""

    def of(self, pod: Json) -> frozenset[str] | None:
        """The zones in which this pod could start, as far as its volumes go; None: any, or unknown."""
        return self._known.get(pod["metadata"]["uid"])

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for pod in self._waiting()[:MAX_READ_AT_ONCE]:
                try:
                    await self._look(pod)
                except errors.SpotinferenceError as error:
                    log.warning("volumes.unread", pod=pod["metadata"]["name"], error=str(error))
            await asyncio.sleep(EVERY_S)

    def _waiting(self) -> list[Json]:
        return [
            pod
            for pod in self._store.all(POD).values()
            if (pod["metadata"].get("labels") or {}).get(names.LABEL_ROLE) == names.ROLE_ENGINE
            and not pod["spec"].get("nodeName")
            and pod["metadata"]["uid"] not in self._known
            and any(
                c.get("type") == "PodScheduled" and c.get("status") == "False"
                for c in (pod.get("status") or {}).get("conditions") or ()
            )
        ]

    async def _look(self, pod: Json) -> None:
        zones: frozenset[str] | None = None
        for volume in pod["spec"].get("volumes") or ():
            claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            if not claim:
                continue
            bound = await self._volume(claim, pod["metadata"]["namespace"])
            if bound is None:
                return  # not bound yet: it will follow its first pod; looked at again
            allowed = volume_zones(bound)
            if allowed is not None:
                zones = allowed if zones is None else zones & allowed
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[pod["metadata"]["uid"]] = zones
        ref = tier_of(POD, pod)
        if zones is not None and ref is not None:
            self._on_change(ref)

    async def _volume(self, claim: str, namespace: str) -> Json | None:
        try:
            body = await self._kube.get(PVC, claim, namespace)
            name = (body.get("spec") or {}).get("volumeName")
            return await self._kube.get(PV, name) if name else None
        except errors.NotFound:
            return None
