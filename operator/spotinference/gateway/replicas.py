"""The engine pods that may get work: discovered by watching pods, ejected when they fail.

Routable: Ready, not being deleted, not doomed, not ejected. A replica that leaves the cluster
drops the answers it was giving at once, even if its connections still look alive.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import structlog

from spotinference.api import names, times
from spotinference.api.kinds import Json
from spotinference.core import pacing, routing
from spotinference.core.ejection import STRIKES
from spotinference.core.evacuation import Progress
from spotinference.core.fingerprint import fingerprint
from spotinference.core.observed import TierRef
from spotinference.core.routing import Work

log = structlog.get_logger(__name__)


class Asker(Protocol):
    """Whose request an answer is to."""

    def progress(self) -> Progress: ...


class Movable(Asker, Protocol):
    """An answer that a replica is giving and that may leave it."""

    def move(self) -> None:
        """Stops reading it here; it goes on elsewhere."""


@dataclass(slots=True, eq=False)
class Replica:
    """One engine pod, alive in the API server's eyes."""

    tier: TierRef
    name: str
    uid: str
    base_url: str
    fingerprint: str
    """what it says (`core/fingerprint.py`): answers continue only on equals"""
    pool: str = ""
    zone: str = ""
    node: str = ""
    ready: bool = False
    ejected: bool = False
    ejections: int = 0
    """in a row, without an answer between"""
    strikes: int = 0
    """failures in a row"""
    outstanding: int = 0
    """tokens of the answers it is giving: prompts not yet prefilled, and answers expected"""
    running: int = 0
    """answers it is giving"""
    slots: int = pacing.DEFAULT_SLOTS
    """answers it can give at a time"""
    limit: int = field(init=False)
    """of these, how many it seems to have for us: it said lately that its queue is full"""
    seed: int = field(init=False)
    """its place in the order of every affinity"""
    doomed_until: datetime | None = None
    """its notice: by then it will be gone"""
    answers: set[Movable] = field(default_factory=set)
    """streams that another replica could carry on"""
    on_gone: set[Callable[[], None]] = field(default_factory=set)
    """drops of the answers it is giving"""

    def __post_init__(self) -> None:
        self.seed = routing.seed(self.uid)
        self.limit = self.slots

    @property
    def routable(self) -> bool:
        return self.ready and not self.ejected

    def answered(self) -> None:
        """It gave a whole answer: what it did before is forgiven."""
        self.strikes = self.ejections = 0


class Replicas:
    """All replicas of all tiers; `on_routable` is called the moment one can take work."""

    def __init__(self) -> None:
        self._by_tier: dict[TierRef, dict[str, Replica]] = {}
        self.on_routable: Callable[[TierRef], None] | None = None
        self.on_doomed: Callable[[Replica], None] | None = None
        """called when a replica gets a notice, or another deadline"""

    def changed(self, before: Json | None, after: Json | None) -> None:
        if before is not None and (
            after is None or after["metadata"]["uid"] != before["metadata"]["uid"]
        ):
            self._gone(_tier_of(before), before["metadata"]["uid"])
        if after is None:
            return
        ref, ip = _tier_of(after), (after.get("status") or {}).get("podIP")
        if ref is None or not ip or _ended(after):
            self._gone(ref, after["metadata"]["uid"])
            return
        uid = after["metadata"]["uid"]
        base_url = f"http://{f'[{ip}]' if ':' in ip else ip}:{_port(after)}"
        replica = self._by_tier.setdefault(ref, {}).get(uid)
        if replica is not None and replica.base_url != base_url:
            self._gone(ref, uid)  # a new sandbox of the same pod: the old address may be anyone's
            replica = None
        if replica is None:
            labels = after["metadata"].get("labels") or {}
            engine = _engine(after)
            replica = Replica(
                tier=ref,
                name=after["metadata"]["name"],
                uid=uid,
                base_url=base_url,
                fingerprint=fingerprint(str(engine.get("image")), engine.get("args") or ()),
                slots=pacing.slots(engine.get("args") or ()),
                pool=labels.get(names.LABEL_POOL, ""),
                zone=labels.get(names.LABEL_ZONE, ""),
                node=after["spec"].get("nodeName", ""),
            )
            self._by_tier[ref][uid] = replica
        was = replica.routable
        ready = _ready(after)
        if ready and not replica.ready:
            replica.ejected = False  # the kubelet's probe says more than an old failure
        replica.ready = ready
        self._notice(replica, _doomed_until(after))
        if replica.routable and not was:
            self._routable(replica)

    def _notice(self, replica: Replica, until: datetime | None) -> None:
        changed = until is not None and until != replica.doomed_until
        replica.doomed_until = until
        if changed and self.on_doomed is not None:
            self.on_doomed(replica)

    def _gone(self, ref: TierRef | None, uid: str) -> None:
        replica = self._by_tier.get(ref, {}).pop(uid, None) if ref is not None else None
        if replica is None:
            return
        replica.ready = False
        for drop in list(replica.on_gone):
            drop()

    def _routable(self, replica: Replica) -> None:
        log.info("replica.routable", tier=str(replica.tier), pod=replica.name)
        if self.on_routable is not None:
            self.on_routable(replica.tier)

    def of(self, ref: TierRef) -> Collection[Replica]:
        return self._by_tier.get(ref, {}).values()

    def room(self, ref: TierRef, on_the_way: int) -> int:
        """How many more requests its replicas can take now."""
        able = [(r.limit, r.running) for r in self.of(ref) if r.routable]
        return pacing.room(able, on_the_way)

    def pick(
        self,
        ref: TierRef,
        work: Work,
        *,
        avoid: Collection[str] = (),
        fingerprint: str | None = None,
    ) -> Replica | None:
        """The routable replica that should do this work; None when there is none."""
        able = [
            replica
            for replica in self.of(ref)
            if replica.routable
            and replica.uid not in avoid
            and (fingerprint is None or replica.fingerprint == fingerprint)
        ]
        if len(able) < 2:
            return able[0] if able else None
        index = routing.choose(
            [replica.outstanding for replica in able],
            [replica.seed for replica in able],
            key=work.key,
            sticky=work.sticky,
        )
        return able[index]

    def eject(self, replica: Replica) -> bool:
        """Takes it out of routing; False when it is out already."""
        if replica.ejected:
            return False
        replica.ejected = True
        replica.ejections += 1
        return True

    def ready_and_ejected(self, ref: TierRef) -> tuple[int, int]:
        """How many the cluster calls ready, and how many of these are out."""
        ready = [replica for replica in self.of(ref) if replica.ready]
        return len(ready), sum(replica.ejected for replica in ready)

    def readmit(self, replica: Replica) -> None:
        """On probation: its next failure takes it out again."""
        replica.ejected = False
        replica.strikes = STRIKES - 1
        if replica.routable:
            self._routable(replica)


def _tier_of(pod: Json) -> TierRef | None:
    meta = pod["metadata"]
    tier = (meta.get("labels") or {}).get(names.LABEL_TIER)
    return TierRef(meta["namespace"], tier) if tier else None


def _ended(pod: Json) -> bool:
    return (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}


def _ready(pod: Json) -> bool:
    meta = pod["metadata"]
    if meta.get("deletionTimestamp"):
        return False
    if names.ANNOTATION_DOOMED_UNTIL in (meta.get("annotations") or {}):
        return False
    return any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in (pod.get("status") or {}).get("conditions") or ()
    )


def _doomed_until(pod: Json) -> datetime | None:
    """None also for what is no time: such a pod is only out of routing."""
    text = (pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_DOOMED_UNTIL)
    try:
        return None if text is None else times.parse(text)
    except ValueError:
        return None


def _engine(pod: Json) -> Json:
    for container in pod["spec"].get("containers") or ():
        if container.get("name") == names.ENGINE_CONTAINER:
            found: Json = container
            return found
    return {}


def _port(pod: Json) -> int:
    for port in _engine(pod).get("ports") or ():
        if port.get("name") == names.ENGINE_PORT_NAME:
            return int(port["containerPort"])
    return names.ENGINE_PORT
