"""Kubernetes Events of the node agent: what `kubectl describe` shows. Best effort, bounded."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

import structlog

from spotinference import errors
from spotinference.api import times
from spotinference.api.kinds import EVENT, Json
from spotinference.clients.clock import Clock
from spotinference.clients.kube import Kube

log = structlog.get_logger(__name__)

QUEUE_LIMIT = 1000
"""Beyond this events are dropped: they inform, nothing rests on them."""
KNOWN_LIMIT = 2000
"""Series remembered for counting repeats; older ones start again at one."""


@dataclass(frozen=True, slots=True)
class _Entry:
    about: Json
    type: str
    reason: str
    message: str


class Events:
    def __init__(self, kube: Kube, clock: Clock, component: str) -> None:
        self._kube = kube
        self._clock = clock
        self._component = component
        self._queue: asyncio.Queue[_Entry] = asyncio.Queue(QUEUE_LIMIT)
        self._counts: dict[str, int] = {}

    def normal(self, about: Json, reason: str, message: str) -> None:
        self._put(_Entry(about, "Normal", reason, message))

    def warning(self, about: Json, reason: str, message: str) -> None:
        self._put(_Entry(about, "Warning", reason, message))

    def _put(self, entry: _Entry) -> None:
        try:
            self._queue.put_nowait(entry)
        except asyncio.QueueFull:
            log.warning("event.dropped", reason=entry.reason)

    async def run(self) -> None:
        while True:
            entry = await self._queue.get()
            try:
                await self._write(entry)
            except errors.SpotinferenceError as error:
                log.debug("event.failed", reason=entry.reason, error=str(error))

    async def _write(self, entry: _Entry) -> None:
        meta = entry.about["metadata"]
        series = "\0".join(
            (entry.about["kind"], meta.get("uid", meta["name"]), entry.reason, entry.message)
        )
        name = f"{meta['name'][:50]}.{hashlib.sha256(series.encode()).hexdigest()[:16]}"
        namespace = meta.get("namespace", "default")
        now = times.to_text(self._clock.now())
        count = self._counts.pop(name, 0) + 1
        self._counts[name] = count
        if len(self._counts) > KNOWN_LIMIT:
            del self._counts[next(iter(self._counts))]
        if count > 1:
            try:
                await self._kube.merge_patch(
                    EVENT, name, namespace, {"count": count, "lastTimestamp": now}
                )
            except errors.NotFound:  # expired; begin a new series
                count = self._counts[name] = 1
            else:
                return
        await self._kube.create(
            EVENT,
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": name, "namespace": namespace},
                "involvedObject": {
                    "apiVersion": entry.about.get("apiVersion", "v1"),
                    "kind": entry.about["kind"],
                    "name": meta["name"],
                    "namespace": meta.get("namespace", ""),
                    "uid": meta.get("uid", ""),
                },
                "type": entry.type,
                "reason": entry.reason,
                "message": entry.message[:1024],
                "source": {"component": self._component},
                "reportingComponent": self._component,
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": count,
            },
        )
