"""What we know of the cluster: the newest body of every watched object, by kind and by tier.

Two sources feed it: the watch (`put`, `gone`), and our own writes (`wrote`, `deleted`), whose
answers are newer than what the watch has shown so far. The higher resourceVersion wins, so that a
decision is never made on state older than our own writes. Never written by anybody else, never
asked for what the API server alone can know (see `act` for live reads).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum

from spotinference.api import names
from spotinference.api.kinds import LEASE, NODE, TIER, Json, Kind
from spotinference.clients.clock import Clock
from spotinference.core.observed import TierRef

ObjectKey = tuple[str, str]
"""(namespace or "", name)"""

TOMBSTONE_S = 60.0
"""How long an object deleted by us stays hidden while the watch still shows it."""
MAX_TOMBSTONES = 10_000


class Change(Enum):
    """What a watched body told us."""

    NEW = "new"
    ECHO = "echo"
    """exactly what we have already: our own write, or a repetition"""
    STALE = "stale"
    """older than what we have"""


def key_of(body: Json) -> ObjectKey:
    meta = body["metadata"]
    return meta.get("namespace") or "", meta["name"]


def version_of(body: Json) -> int:
    """Versions of one kind are ordered integers (promised by Kubernetes since 1.35)."""
    return int(body["metadata"].get("resourceVersion") or 0)


def tier_of(kind: Kind, body: Json) -> TierRef | None:
    """The tier an object belongs to: itself, or by our label."""
    namespace, name = key_of(body)
    if kind == TIER:
        return TierRef(namespace, name)
    tier = (body["metadata"].get("labels") or {}).get(names.LABEL_TIER)
    return TierRef(namespace, tier) if tier else None


class Store:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._objects: dict[Kind, dict[ObjectKey, Json]] = defaultdict(dict)
        self._by_tier: dict[tuple[Kind, TierRef], set[ObjectKey]] = defaultdict(set)
        self._tombstones: dict[str, float] = {}
        self.removed_listeners: list[Callable[[Kind, Json], None]] = []

    # --- reads ----------------------------------------------------------------------------------

    def get(self, kind: Kind, name: str, namespace: str = "") -> Json | None:
        return self._objects[kind].get((namespace, name))

    def all(self, kind: Kind) -> Mapping[ObjectKey, Json]:
        return self._objects[kind]

    def of_tier(self, kind: Kind, ref: TierRef) -> list[Json]:
        """The tier's objects of one kind, by name."""
        objects = self._objects[kind]
        return [objects[key] for key in sorted(self._by_tier.get((kind, ref), ()))]

    def tiers(self) -> Iterator[TierRef]:
        for namespace, name in list(self._objects[TIER]):
            yield TierRef(namespace, name)

    # --- the watch ------------------------------------------------------------------------------

    def put(self, kind: Kind, body: Json) -> Change:
        """Keeps the body unless we know a newer one."""
        body = slim_copy(kind, body)
        uid = body["metadata"].get("uid", "")
        if self._buried(uid):
            if body["metadata"].get("deletionTimestamp") is None:
                return Change.STALE
            self._tombstones.pop(uid, None)
        known = self._objects[kind].get(key_of(body))
        if known is not None:
            if version_of(known) > version_of(body):
                return Change.STALE
            if version_of(known) == version_of(body):
                return Change.ECHO
        self._set(kind, body)
        return Change.NEW

    def gone(self, kind: Kind, body: Json) -> bool:
        """The object was deleted; False when another one has its name by now."""
        known = self._objects[kind].get(key_of(body))
        if known is None or known["metadata"].get("uid") != body["metadata"].get("uid"):
            return False
        self._drop(kind, known)
        return True

    def reconcile(
        self, kind: Kind, before: Iterable[ObjectKey], live: Iterable[Json], version: str
    ) -> list[Json]:
        """Repairs what a watch missed, from a full list of this version; answers what was wrong.

        `before`: the keys known when the list was asked for. What is among them and not in the
        list is gone; what came since is not judged, be it under a name that was known before.
        """
        fresh = {key_of(item): item for item in live}
        wrong = []
        for key in before:
            known = self._objects[kind].get(key)
            if key not in fresh and known is not None and version_of(known) <= int(version):
                self._drop(kind, known)
                wrong.append(known)
        for item in fresh.values():
            item.setdefault("kind", kind.kind)
            item.setdefault("apiVersion", kind.api_version)
            if self.put(kind, item) is Change.NEW:
                wrong.append(item)
        return wrong

    # --- our own writes -------------------------------------------------------------------------

    def wrote(self, kind: Kind, body: Json) -> None:
        """The API server's answer to our write."""
        self.put(kind, body)

    def deleted(self, kind: Kind, body: Json, *, at_once: bool) -> None:
        """We deleted this object: hidden at once, or marked as going until the watch says so."""
        uid = body["metadata"]["uid"]
        known = self._objects[kind].get(key_of(body))
        if known is None or known["metadata"].get("uid") != uid:
            return
        self._bury(uid)
        if at_once:
            self._drop(kind, known)
            return
        stamp = self._clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        self._set(kind, known | {"metadata": known["metadata"] | {"deletionTimestamp": stamp}})

    # --- inside ---------------------------------------------------------------------------------

    def _set(self, kind: Kind, body: Json) -> None:
        key = key_of(body)
        known = self._objects[kind].get(key)
        if known is not None:
            self._unlink(kind, known)
        self._objects[kind][key] = body
        ref = tier_of(kind, body)
        if ref is not None:
            self._by_tier[kind, ref].add(key)

    def _drop(self, kind: Kind, body: Json) -> None:
        self._unlink(kind, body)
        self._objects[kind].pop(key_of(body), None)
        for listener in self.removed_listeners:
            listener(kind, body)

    def _unlink(self, kind: Kind, body: Json) -> None:
        ref = tier_of(kind, body)
        if ref is None:
            return
        keys = self._by_tier.get((kind, ref))
        if keys is not None:
            keys.discard(key_of(body))
            if not keys:
                del self._by_tier[kind, ref]

    def _bury(self, uid: str) -> None:
        if len(self._tombstones) >= MAX_TOMBSTONES:
            self._tombstones.pop(next(iter(self._tombstones)))
        self._tombstones[uid] = self._clock.monotonic() + TOMBSTONE_S

    def _buried(self, uid: str) -> bool:
        until = self._tombstones.get(uid)
        if until is None:
            return False
        if until > self._clock.monotonic():
            return True
        del self._tombstones[uid]
        return False


def slim_copy(kind: Kind, body: Json) -> Json:
    """Without what no decision reads and what would fill the memory."""
    slim = dict(body)
    meta = dict(slim["metadata"])
    meta.pop("managedFields", None)
    slim["metadata"] = meta
    if kind == NODE and "images" in slim.get("status", {}):
        slim["status"] = {key: value for key, value in slim["status"].items() if key != "images"}
    return slim


def is_demand(kind: Kind, body: Json) -> bool:
    labels = body["metadata"].get("labels") or {}
    return kind == LEASE and labels.get(names.LABEL_ROLE) == names.ROLE_DEMAND
