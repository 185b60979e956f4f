"""A reflector: a local, always-fresh copy of one kind, by list and watch.

Relists on 410 and reconnects on failure, with jittered backoff while no watch stands; treats silence as a frozen
connection, and never takes a half list for deletions. Used by the gateway, the embedded cluster, and
the operator for nodes and their events; all else it watches through Kopf.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType

import structlog
from tenacity import wait_random_exponential

from spotinference import errors
from spotinference.api.kinds import Json, Kind
from spotinference.clients.kube import WATCH_SILENCE_S, Kube

log = structlog.get_logger(__name__)

STANDS_S = 5.0
"""A watch that ends sooner was none."""
_BACKOFF = wait_random_exponential(multiplier=0.2, max=10)

Key = tuple[str, str]
"""(namespace or "", name)"""
OnChange = Callable[[Json | None, Json | None], None]
"""(before, after): None before = new, None after = gone. Called on the loop; must not block."""


def key_of(obj: Json) -> Key:
    meta = obj["metadata"]
    return meta.get("namespace", ""), meta["name"]


class Reflector:
    def __init__(
        self,
        kube: Kube,
        kind: Kind,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        on_change: OnChange | None = None,
        keep: Callable[[Json], Json] = lambda body: body,
        silence_s: float = WATCH_SILENCE_S,
    ) -> None:
        """`keep`: what of an object is kept, and shown to `on_change`."""
        self._kube = kube
        self._kind = kind
        self._namespace = namespace
        self._labels = label_selector
        self._fields = field_selector
        self._on_change = on_change
        self._keep = keep
        self._silence_s = silence_s
        self._objects: dict[Key, Json] = {}
        self._synced = asyncio.Event()
        self.relists = 0
        self.failures = 0

    @property
    def objects(self) -> Mapping[Key, Json]:
        return MappingProxyType(self._objects)

    @property
    def synced(self) -> bool:
        return self._synced.is_set()

    async def wait_synced(self, timeout_s: float) -> None:
        async with asyncio.timeout(timeout_s):
            await self._synced.wait()

    async def run(self) -> None:
        """Runs until cancelled. `Forbidden` ends it: without rights it would be deaf for ever."""
        attempt = _Attempt()
        while True:
            try:
                version = await self._relist()
                while True:
                    version = await self._stood(attempt, version)
            except errors.Expired as error:
                if attempt.attempt_number > 1:
                    await self._back_off(attempt, error)
                attempt.attempt_number += 1
            except errors.Retryable as error:
                self.failures += 1
                await self._back_off(attempt, error)
                attempt.attempt_number += 1

    async def _stood(self, attempt: _Attempt, version: str) -> str:
        """One watch to its end in order. Only one that stood for a while makes the next failure the
        first: a list that succeeds does not, or lists would follow upon each other without a pause.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            version = await self._follow(version)
        finally:
            stood = loop.time() - began >= STANDS_S
            if stood:
                attempt.attempt_number = 1
        if not stood:
            await self._back_off(attempt, errors.ApiUnavailable("the watch ended at once"))
            attempt.attempt_number += 1
        return version

    async def _back_off(self, attempt: _Attempt, error: Exception) -> None:
        delay_s = _BACKOFF(attempt)  # type: ignore[arg-type]  # reads attempt_number only
        log.warning("watch.retry", kind=self._kind.plural, error=str(error), in_s=delay_s)
        await asyncio.sleep(delay_s)

    async def _relist(self) -> str:
        listing = await self._kube.list(
            self._kind,
            self._namespace,
            label_selector=self._labels,
            field_selector=self._fields,
        )
        self.relists += 1
        fresh = {key_of(item): item for item in listing.items}
        for key in [key for key in self._objects if key not in fresh]:
            self._set(key, None)
        for key, item in fresh.items():
            self._set(key, item)
        self._synced.set()
        return listing.resource_version

    async def _follow(self, version: str) -> str:
        async for event in self._kube.watch(
            self._kind,
            self._namespace,
            resource_version=version,
            label_selector=self._labels,
            field_selector=self._fields,
            silence_s=self._silence_s,
        ):
            version = event.object["metadata"]["resourceVersion"]
            if event.type == "DELETED":
                self._set(key_of(event.object), None)
            elif event.type != "BOOKMARK":
                self._set(key_of(event.object), event.object)
        return version

    def _set(self, key: Key, after: Json | None) -> None:
        before = self._objects.get(key)
        if after is None:
            self._objects.pop(key, None)
        else:
            if (
                before is not None
                and before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]
            ):
                return
            # List items lack kind and apiVersion; watchers must not need to care.
            after.setdefault("kind", self._kind.kind)
            after.setdefault("apiVersion", self._kind.api_version)
            after = self._keep(after)
            self._objects[key] = after
        if self._on_change is not None and (before is not None or after is not None):
            self._on_change(before, after)


class _Attempt:
    """What tenacity's wait strategies read of a retry state."""

    attempt_number = 1
