"""The operator's shell wired around a fake API server that remembers what was written."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, cast

from spotinference import errors
from spotinference.api.kinds import Json, Kind
from spotinference.clients.clock import Clock
from spotinference.clients.kube import Kube, Listing
from spotinference.clients.vllm import EngineClient
from spotinference.controller.act import Actor
from spotinference.controller.demand import DemandBook
from spotinference.controller.events import EventPoster
from spotinference.controller.latency import Latencies
from spotinference.controller.metrics import Metrics
from spotinference.controller.nodes import NodeWatch
from spotinference.controller.observe import Observer
from spotinference.controller.scrape import Scraper
from spotinference.controller.store import Store, key_of
from spotinference.controller.writer import Writer
from spotinference.core.observed import OperatorSettings


@dataclass
class FakeApi:
    """Objects by (kind, namespace, name); versions count up; refusals by (verb, kind)."""

    objects: dict[tuple[str, str, str], Json] = field(default_factory=dict)
    writes: list[tuple[str, str, str]] = field(default_factory=list)
    """(verb, kind, name) in order"""
    refusals: dict[tuple[str, str], errors.SpotinferenceError] = field(default_factory=dict)
    version: int = 1000
    down: bool = False

    def put(self, kind: Kind, body: Json) -> Json:
        self.version += 1
        stored = copy.deepcopy(body)
        stored["metadata"].setdefault("uid", f"{stored['metadata']['name']}-uid")
        stored["metadata"]["resourceVersion"] = str(self.version)
        self.objects[kind.kind, *key_of(stored)] = stored
        return copy.deepcopy(stored)

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Json:
        if self.down:
            raise errors.ApiUnavailable("down")
        try:
            return copy.deepcopy(self.objects[kind.kind, namespace or "", name])
        except KeyError:
            raise errors.NotFound(f"{kind.kind} {name}") from None

    async def list(
        self, kind: Kind, namespace: str | None = None, *, label_selector: str | None = None
    ) -> Listing:
        found = [
            copy.deepcopy(body)
            for (known, where, _), body in self.objects.items()
            if known == kind.kind and namespace in (None, where)
        ]
        return Listing(found, str(self.version))

    async def apply(self, kind: Kind, body: Json, *, subresource: str | None = None) -> Json:
        verb = "status" if subresource else "apply"
        self._write(verb, kind, body["metadata"]["name"])
        live = self.objects.get((kind.kind, *key_of(body)), {})
        merged = copy.deepcopy(live) | copy.deepcopy(body)
        merged["metadata"] = live.get("metadata", {}) | body["metadata"]
        return self.put(kind, merged)

    async def create(self, kind: Kind, body: Json) -> Json:
        self._write("create", kind, body["metadata"]["name"])
        if (kind.kind, *key_of(body)) in self.objects:
            raise errors.Conflict("exists")
        return self.put(kind, body)

    async def merge_patch(
        self,
        kind: Kind,
        name: str,
        namespace: str | None,
        patch: Json,
        *,
        subresource: str | None = None,
    ) -> Json:
        self._write(subresource or "patch", kind, name)
        live = await self.get(kind, name, namespace)
        pinned = patch.get("metadata", {}).get("resourceVersion")
        if pinned not in (None, live["metadata"]["resourceVersion"]):
            raise errors.Conflict("stale")
        if subresource == "scale":
            return self.put(kind, live | {"spec": live["spec"] | patch["spec"]})
        wanted_uid = patch.get("metadata", {}).get("uid")
        if wanted_uid not in (None, live["metadata"]["uid"]):
            raise errors.Conflict("another uid")
        annotations = live["metadata"].get("annotations", {})
        for key, value in patch.get("metadata", {}).get("annotations", {}).items():
            if value is None:
                annotations.pop(key, None)
            else:
                annotations[key] = value
        live["metadata"]["annotations"] = annotations
        return self.put(kind, live | {k: v for k, v in patch.items() if k != "metadata"})

    async def delete(self, kind: Kind, name: str, namespace: str | None = None, **how: Any) -> None:
        self._write("delete", kind, name)
        live = self.objects.get((kind.kind, namespace or "", name))
        if live is None:
            return
        if how.get("uid") not in (None, live["metadata"]["uid"]):
            raise errors.Conflict("another uid")
        del self.objects[kind.kind, namespace or "", name]

    def _write(self, verb: str, kind: Kind, name: str) -> None:
        self.writes.append((verb, kind.kind, name))
        refusal = self.refusals.get((verb, kind.kind))
        if refusal is not None:
            raise refusal


class Shell:
    """Store, observer and actor as the composition root wires them."""

    def __init__(self, clock: Clock) -> None:
        self.api = FakeApi()
        self.leading = True
        kube = cast("Kube", self.api)
        self.metrics = Metrics()
        self.store = Store(clock)
        self.demand = DemandBook(self.store, clock)
        self.latencies = Latencies(self.metrics, clock)
        self.writer = Writer(kube, self.store, self.metrics, lambda: self.leading)
        self.changed_nodes: list[str] = []
        self.nodes = NodeWatch(kube, self.store, clock, self.changed_nodes.append)
        self.scraper = Scraper(self.store, cast("EngineClient", None), clock, lambda _: None)
        self.observer = Observer(
            self.store,
            self.nodes,
            self.demand,
            self.scraper,
            clock,
            OperatorSettings(image="spotinference:test"),
        )
        self.events = EventPoster(self.writer, self.metrics, clock, "test")
        self.actor = Actor(
            kube, self.writer, self.store, self.demand, self.events, self.latencies, clock
        )

    def have(self, kind: Kind, body: Json) -> Json:
        """The object exists and the watch has shown it."""
        live = self.api.put(kind, body)
        self.store.put(kind, live)
        return live

    def wrote(self) -> list[tuple[str, str, str]]:
        return self.api.writes
