"""Writes what waits as demand Leases, level-triggered: one task per tier while anything waits.

The first parked request causes one write at once; further ones cause none; every `RENEW_S` the
Lease is renewed; when nobody waits it is deleted. A write that fails is tried again until it is
moot; a Lease that cannot be deleted expires by itself.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from spotinference import errors
from spotinference.api import demand, names
from spotinference.api.kinds import LEASE, Json, Kind
from spotinference.clients.clock import Clock
from spotinference.core.observed import TierRef
from spotinference.gateway.catalogue import Catalogue
from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.metrics import Metrics
from spotinference.gateway.parking import Parking

log = structlog.get_logger(__name__)


class Writer(Protocol):
    """The two writes a gateway makes; `clients.kube.Kube` has them."""

    async def apply(self, kind: Kind, body: Json) -> Json: ...

    async def delete(self, kind: Kind, name: str, namespace: str | None = None) -> None: ...


class DemandWriter:
    def __init__(
        self,
        *,
        kube: Writer,
        gateway_id: str,
        clock: Clock,
        catalogue: Catalogue,
        settings: GatewaySettings,
        metrics: Metrics,
    ) -> None:
        self._kube = kube
        self._id = gateway_id
        self._clock = clock
        self._catalogue = catalogue
        self._settings = settings
        self._metrics = metrics
        self._tasks: dict[TierRef, asyncio.Task[None]] = {}
        self._wakeups: dict[TierRef, asyncio.Event] = {}
        self._parking: Parking | None = None

    def bind(self, parking: Parking) -> None:
        """Where the numbers come from; Parking is made with `wanted_changed` first."""
        self._parking = parking

    def wanted_changed(self, ref: TierRef, wanted: int) -> None:
        """Called by Parking at every change; starts or wakes the tier's task."""
        if ref in self._tasks:
            if wanted == 0:
                self._wakeups[ref].set()
            return
        if wanted:
            self._wakeups[ref] = asyncio.Event()
            self._tasks[ref] = asyncio.get_running_loop().create_task(
                self._keep(ref), name=f"demand {ref}"
            )

    async def close(self, timeout_s: float = 3.0) -> None:
        """Withdraws what is left, within the time-out."""
        for wakeup in self._wakeups.values():
            wakeup.set()
        if self._tasks:
            _, late = await asyncio.wait(list(self._tasks.values()), timeout=timeout_s)
            for task in late:
                task.cancel()

    def _wanted(self, ref: TierRef) -> int:
        return self._parking.wanted(ref) if self._parking is not None else 0

    async def _keep(self, ref: TierRef) -> None:
        wakeup = self._wakeups[ref]
        try:
            while self._wanted(ref):
                wakeup.clear()
                await self._write(ref)
                if not self._wanted(ref):
                    break
                try:
                    async with asyncio.timeout(demand.RENEW_S):
                        await wakeup.wait()
                except TimeoutError:
                    continue
            await self._withdraw(ref)
        except Exception:  # the outermost frame of this task
            self._metrics.bugs.inc()
            log.exception("demand.bug", tier=str(ref))
            await asyncio.sleep(self._settings.demand_retry_max_s)  # it is started again below
        finally:
            del self._tasks[ref]
            del self._wakeups[ref]
            if self._wanted(ref):  # somebody came while the Lease was being deleted
                self.wanted_changed(ref, self._wanted(ref))

    async def _write(self, ref: TierRef) -> None:
        """One apply; retried while it may help and somebody waits."""
        attempt = 0
        while self._wanted(ref):
            attempt += 1
            try:
                await self._apply(ref)
            except errors.Retryable as error:
                delay_s = min(0.05 * 2**attempt, self._settings.demand_retry_max_s)
                log.warning("demand.retry", tier=str(ref), error=str(error), in_s=delay_s)
                self._metrics.demand_writes.labels("apply", "retried").inc()
                await asyncio.sleep(delay_s)
            except errors.SpotinferenceError as error:
                log.error("demand.refused", tier=str(ref), error=str(error))  # noqa: TRY400
                self._metrics.demand_writes.labels("apply", "refused").inc()
                return
            else:
                self._metrics.demand_writes.labels("apply", "written").inc()
                return

    async def _apply(self, ref: TierRef) -> None:
        tier = self._catalogue.get(ref)
        parking = self._parking
        oldest = parking.oldest(ref) if parking is not None else None
        if tier is None or oldest is None:
            return
        said = demand.Demand(self._id, self._wanted(ref), oldest)
        lease = demand.lease(
            namespace=ref.namespace,
            tier=ref.name,
            tier_uid=tier.uid,
            demand=said,
            renewed_at=self._clock.now(),
        )
        await self._kube.apply(LEASE, lease)

    async def _withdraw(self, ref: TierRef) -> None:
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(self._settings.demand_attempts),
                wait=wait_random_exponential(multiplier=0.1, max=self._settings.demand_retry_max_s),
                retry=retry_if_exception_type(errors.Retryable),
                reraise=True,
            ):
                with attempt:
                    if not self._wanted(ref):
                        name = names.demand_lease(ref.name, self._id)
                        await self._kube.delete(LEASE, name, ref.namespace)
            self._metrics.demand_writes.labels("delete", "written").inc()
        except errors.SpotinferenceError as error:
            # Not renewed any more, it is ignored by the operator after its duration.
            log.warning("demand.left_to_expire", tier=str(ref), error=str(error))
            self._metrics.demand_writes.labels("delete", "failed").inc()
