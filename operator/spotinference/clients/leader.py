"""Leadership: of several replicas one acts, by a Lease of coordination.k8s.io.

The rules, which make clock skew and pauses harmless:
- A Lease of somebody else has expired when *we* saw no change of it for its whole duration, by our
  monotonic clock. Times written in it are for people only.
- We lead while the last renewal that succeeded was *sent* less than `renew_deadline_s` ago, which
  is well before anybody else may take over. A process that was stopped finds this out by asking
  `leads()`, which is done before each write.
- On exit the Lease is released, so that the next one need not wait.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from spotinference import errors
from spotinference.api import times
from spotinference.api.kinds import LEASE, Json, Kind
from spotinference.clients.clock import Clock

log = structlog.get_logger(__name__)


class LeaseApi(Protocol):
    """What the elector needs of `clients.kube.Kube`."""

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Json: ...

    async def create(self, kind: Kind, body: Json) -> Json: ...

    async def merge_patch(
        self, kind: Kind, name: str, namespace: str | None, patch: Json
    ) -> Json: ...


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    duration_s: int = 15
    """an unchanged Lease is free after this long"""
    renew_deadline_s: float = 10.0
    """we stop acting this long after our last successful renewal was sent"""
    renew_every_s: float = 2.0
    retry_every_s: float = 1.0
    """how often those who wait look"""
    request_s: float = 5.0


class Elector:
    """One candidate. `run` until cancelled, `leads` before each write, `release` at the end."""

    def __init__(
        self,
        api: LeaseApi,
        clock: Clock,
        *,
        namespace: str,
        name: str,
        identity: str,
        lease_times: LeaseTimes | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._clock = clock
        self._namespace = namespace
        self._name = name
        self._times = lease_times or LeaseTimes()
        self._sleep = sleep
        # Two processes started with the same identity by mistake must not both lead.
        self.identity = f"{identity}_{uuid.uuid4().hex[:8]}"
        self._valid_until: float | None = None
        self._seen_version: str | None = None
        self._seen_at = 0.0
        self._stopping = False
        self.on_change: Callable[[bool], None] = lambda _: None
        self._announced = False
        self._answered_at = clock.monotonic()

    def leads(self) -> bool:
        return self._valid_until is not None and self._clock.monotonic() < self._valid_until

    def unanswered_s(self) -> float:
        """How long the API server has not answered us."""
        return self._clock.monotonic() - self._answered_at

    async def run(self) -> None:
        """Acquires and renews until cancelled; failures of the API are waited out."""
        while not self._stopping:
            try:
                async with asyncio.timeout(self._times.request_s):
                    await self._step()
                self._answered_at = self._clock.monotonic()
            except (errors.SpotinferenceError, TimeoutError) as error:
                log.warning(
                    "leader.retry", lease=self._name, error=f"{type(error).__name__}: {error}"
                )
            self._announce()
            every_s = self._times.renew_every_s if self.leads() else self._times.retry_every_s
            await self._sleep(every_s * random.uniform(0.9, 1.0))

    async def release(self) -> None:
        """Gives the Lease up so that another may take it at once. Never raises."""
        self._stopping = True
        if not self.leads():
            return
        self._valid_until = None
        self._announce()
        try:
            async with asyncio.timeout(self._times.request_s):
                await self._write(self._seen_version, holder="", transitions=None)
            log.info("leader.released", lease=self._name, identity=self.identity)
        except (errors.SpotinferenceError, TimeoutError) as error:
            log.warning("leader.release_failed", lease=self._name, error=str(error))

    # --- inside ---------------------------------------------------------------------------------

    async def _step(self) -> None:
        sent_at = self._clock.monotonic()
        if self.leads():
            try:
                self._take(await self._write(self._seen_version, self.identity, None), sent_at)
            except errors.Conflict:
                # Somebody wrote our Lease: a person's annotation, or another who took it.
                if not self._look(await self._api.get(LEASE, self._name, self._namespace)):
                    self._valid_until = None
            return
        try:
            lease = await self._api.get(LEASE, self._name, self._namespace)
        except errors.NotFound:
            await self._create(sent_at)
            return
        if not self._look(lease):
            return
        transitions = int(lease.get("spec", {}).get("leaseTransitions") or 0) + 1
        version = lease["metadata"]["resourceVersion"]
        sent_at = self._clock.monotonic()
        try:
            self._take(await self._write(version, self.identity, transitions), sent_at)
        except errors.Conflict:
            return  # another candidate was faster

    def _look(self, lease: Json) -> bool:
        """Whether the Lease is free for us to take."""
        version = lease["metadata"]["resourceVersion"]
        now = self._clock.monotonic()
        if version != self._seen_version:
            self._seen_version = version
            self._seen_at = now
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder in ("", self.identity):
            return True
        duration_s = int(spec.get("leaseDurationSeconds") or self._times.duration_s)
        return now - self._seen_at >= duration_s

    async def _create(self, sent_at: float) -> None:
        body = {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": self._spec(self.identity, transitions=0),
        }
        try:
            self._take(await self._api.create(LEASE, body), sent_at)
        except errors.Conflict:
            return  # another candidate was faster

    async def _write(self, version: str | None, holder: str, transitions: int | None) -> Json:
        patch: Json = {"spec": self._spec(holder, transitions)}
        if version is not None:
            patch["metadata"] = {"resourceVersion": version}
        return await self._api.merge_patch(LEASE, self._name, self._namespace, patch)

    def _spec(self, holder: str, transitions: int | None) -> Json:
        now = times.to_micro_text(self._clock.now())
        spec: Json = {
            "holderIdentity": holder,
            "leaseDurationSeconds": self._times.duration_s if holder else 1,
            "renewTime": now,
        }
        if transitions is not None:
            spec |= {"acquireTime": now, "leaseTransitions": transitions}
        return spec

    def _take(self, lease: Json, sent_at: float) -> None:
        self._seen_version = lease["metadata"]["resourceVersion"]
        self._seen_at = self._clock.monotonic()
        if not self._stopping:
            self._valid_until = sent_at + self._times.renew_deadline_s

    def _announce(self) -> None:
        leads = self.leads()
        if leads == self._announced:
            return
        self._announced = leads
        log.info("leader.changed", leads=leads, lease=self._name, identity=self.identity)
        self.on_change(leads)
