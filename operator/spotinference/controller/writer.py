"""The one door to the API server for writes: asks for leadership before each, counts them, and
shows their answers to the store at once. A process that lost the Lease is refused here, whatever
it decided before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

from spotinference import errors
from spotinference.api.kinds import DEPLOYMENT, Json, Kind
from spotinference.clients.kube import Kube
from spotinference.controller.metrics import Metrics
from spotinference.controller.store import Store

YIELD_S = 0.5
"""The longest that a write steps back behind urgent ones of other tiers."""


class Lane:
    """Urgent writes go first: when fifty nodes go at once, fifty replacements are asked for before
    anything else about their tiers is written.
    """

    def __init__(self) -> None:
        self._urgent = 0
        self._free = asyncio.Event()
        self._free.set()

    @contextlib.contextmanager
    def urgent(self) -> Iterator[None]:
        self._urgent += 1
        self._free.clear()
        try:
            yield
        finally:
            self._urgent -= 1
            if self._urgent == 0:
                self._free.set()

    async def step_back(self) -> None:
        """Until nothing urgent is under way, for at most `YIELD_S`."""
        if self._free.is_set():
            return
        try:
            async with asyncio.timeout(YIELD_S):
                await self._free.wait()
        except TimeoutError:
            return


class Writer:
    def __init__(
        self, kube: Kube, store: Store, metrics: Metrics, leads: Callable[[], bool]
    ) -> None:
        self._kube = kube
        self._store = store
        self._metrics = metrics
        self._leads = leads
        self._lane = Lane()

    async def apply(self, kind: Kind, body: Json, *, urgent: bool = False) -> Json:
        """`urgent`: a client waits for this, or a machine is about to go."""
        if urgent:
            with self._lane.urgent():
                answer = await self._now("apply", kind, lambda: self._kube.apply(kind, body))
        else:
            answer = await self._send("apply", kind, lambda: self._kube.apply(kind, body))
        self._store.wrote(kind, answer)
        return answer

    async def scale(self, live: Json, replicas: int, *, urgent: bool = False) -> None:
        """Only the number of a Deployment, pinned to the version we know: `Conflict` when stale.

        Half as dear for the API server as an apply of the whole object (3.6-4.4 ms of its time
        against 10; 1.36, two cores), which counts when fifty replacements are asked for at once.
        """
        meta = live["metadata"]
        patch = {
            "metadata": {"resourceVersion": meta["resourceVersion"]},
            "spec": {"replicas": replicas},
        }

        async def send() -> Json:
            return await self._kube.merge_patch(
                DEPLOYMENT, meta["name"], meta["namespace"], patch, subresource="scale"
            )

        if urgent:
            with self._lane.urgent():
                answer = await self._now("scale", DEPLOYMENT, send)
        else:
            answer = await self._send("scale", DEPLOYMENT, send)
        # The answer is a Scale: what the Deployment is now follows from it.
        changed = {
            "resourceVersion": answer["metadata"]["resourceVersion"],
            "generation": int(meta.get("generation") or 0) + 1,
        }
        spec = {**live["spec"], "replicas": replicas}
        self._store.wrote(DEPLOYMENT, {**live, "metadata": {**meta, **changed}, "spec": spec})

    async def apply_status(self, kind: Kind, body: Json) -> None:
        answer = await self._send(
            "status", kind, lambda: self._kube.apply(kind, body, subresource="status")
        )
        self._store.wrote(kind, answer)

    async def annotate(self, kind: Kind, live: Json, annotations: dict[str, str | None]) -> None:
        """Sets or removes annotations of exactly this object (uid); absent already is success."""
        meta = live["metadata"]
        patch = {"metadata": {"uid": meta["uid"], "annotations": annotations}}
        try:
            answer = await self._send(
                "patch",
                kind,
                lambda: self._kube.merge_patch(kind, meta["name"], meta.get("namespace"), patch),
            )
        except errors.NotFound:
            return
        self._store.wrote(kind, answer)

    async def delete(self, kind: Kind, live: Json, *, grace_s: int | None) -> None:
        """Deletes exactly this object (uid); another one under its name is left alone."""
        meta = live["metadata"]

        async def send() -> Json:
            await self._kube.delete(
                kind,
                meta["name"],
                meta.get("namespace"),
                uid=meta["uid"],
                grace_s=grace_s,
                propagation="Background",
            )
            return {}

        await self._send("delete", kind, send)
        self._store.deleted(kind, live, at_once=grace_s == 0)

    async def create(self, kind: Kind, body: Json) -> Json:
        return await self._send("create", kind, lambda: self._kube.create(kind, body))

    async def merge_patch(self, kind: Kind, name: str, namespace: str, patch: Json) -> Json:
        return await self._send(
            "patch", kind, lambda: self._kube.merge_patch(kind, name, namespace, patch)
        )

    async def _send(self, verb: str, kind: Kind, send: Callable[[], Awaitable[Json]]) -> Json:
        await self._lane.step_back()
        return await self._now(verb, kind, send)

    async def _now(self, verb: str, kind: Kind, send: Callable[[], Awaitable[Json]]) -> Json:
        if not self._leads():
            self._metrics.refused.inc()
            raise errors.NotLeader(f"{verb} {kind.plural} refused: another replica leads now")
        try:
            answer = await send()
        except errors.SpotinferenceError as error:
            self._metrics.write_errors.labels(kind.kind, verb, type(error).__name__).inc()
            raise
        self._metrics.writes.labels(kind.kind, verb).inc()
        return answer
