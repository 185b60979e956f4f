"""The API server in memory, as much of it as a gateway uses."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence

from spotinference import errors
from spotinference.api.kinds import LEASE, Json, Kind
from spotinference.clients.kube import Kube, Listing, WatchEvent

NAMESPACE = "default"


class FakeKube(Kube):
    """The API server in memory: list, watch, apply, delete; every write is remembered."""

    def __init__(self) -> None:
        self.field_manager = "test"
        self.objects: dict[tuple[str, str, str], Json] = {}
        self.writes: list[tuple[str, str]] = []
        """(verb, name) of each Lease write, in order"""
        self.applied_at: list[float] = []
        self.fail_writes = 0
        """So many of the next writes fail as if the API server were down."""
        self.away = False
        self._versions = itertools.count(1)
        self._watchers: list[tuple[Kind, str | None, asyncio.Queue[WatchEvent | None]]] = []

    async def close(self) -> None:
        return

    def go_away(self) -> None:
        """Every watch breaks and every call fails, until `away` is False again."""
        self.away = True
        for _, _, queue in self._watchers:
            queue.put_nowait(None)

    def _reach(self) -> None:
        if self.away:
            raise errors.ApiUnavailable("the API server is away")

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> Listing:
        self._reach()
        if field_selector is not None:
            return Listing([], "0")
        items = [
            json.loads(json.dumps(o))
            for (k, _, _), o in self.objects.items()
            if k == kind.kind and _selected(o, label_selector)
        ]
        return Listing(items, str(next(self._versions)))

    async def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str | None = None,
        field_selector: str | None = None,
        silence_s: float = 70,
    ) -> AsyncIterator[WatchEvent]:
        self._reach()
        queue: asyncio.Queue[WatchEvent | None] = asyncio.Queue()
        entry = (kind, label_selector, queue)
        self._watchers.append(entry)
        try:
            while (event := await queue.get()) is not None:
                yield event
            self._reach()
        finally:
            self._watchers.remove(entry)

    def put(self, kind: Kind, body: Json) -> None:
        meta = body["metadata"]
        meta["resourceVersion"] = str(next(self._versions))
        key = (kind.kind, meta.get("namespace", ""), meta["name"])
        known = key in self.objects
        self.objects[key] = body
        self._tell(kind, "MODIFIED" if known else "ADDED", body)

    def drop(self, kind: Kind, name: str, namespace: str = NAMESPACE) -> None:
        body = self.objects.pop((kind.kind, namespace, name))
        body["metadata"]["resourceVersion"] = str(next(self._versions))
        self._tell(kind, "DELETED", body)

    def _tell(self, kind: Kind, event: str, body: Json) -> None:
        for watched, selector, queue in self._watchers:
            if watched == kind and _selected(body, selector):
                queue.put_nowait(WatchEvent(event, json.loads(json.dumps(body))))

    async def apply(self, kind: Kind, body: Json, *, subresource: str | None = None) -> Json:
        self.writes.append(("apply", body["metadata"]["name"]))
        self.applied_at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.001)
        self._reach()
        if self.fail_writes > 0:
            self.fail_writes -= 1
            raise errors.ApiUnavailable("the API server is away")
        self.put(kind, dict(body))
        return body

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        grace_s: int | None = None,
        propagation: str | None = None,
    ) -> None:
        self.writes.append(("delete", name))
        await asyncio.sleep(0.001)
        self._reach()
        if (kind.kind, namespace or "", name) in self.objects:
            self.drop(kind, name, namespace or "")

    def leases(self) -> Sequence[Json]:
        return [body for (kind, _, _), body in self.objects.items() if kind == LEASE.kind]


def _selected(body: Json, selector: str | None) -> bool:
    labels = body["metadata"].get("labels") or {}
    pairs = (pair.split("=") for pair in (selector or "").split(",") if pair)
    return all(labels.get(name) == value for name, value in pairs)
