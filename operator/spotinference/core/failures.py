"""When an engine will not start: stop burning GPU time, and try again ever more rarely."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from spotinference.api import durations, times
from spotinference.api.tier_status import EngineFailureStatus
from spotinference.core.fleet import Fleet, Replica, Standing
from spotinference.core.observed import Observed

GIVE_UP_RESTARTS = 3
FIRST_BACKOFF_S = 60.0
MAX_BACKOFF_S = 3600.0
NEVER_STARTED_S = 120.0
"""An image that cannot be pulled, a container that cannot be made: no restart will be counted."""

STUCK = (
    "no container was made within spec.engine.startup: a volume that cannot be mounted, or a slow "
    "image pull; the pod's events say which (kubectl get events)"
)
"""For a pod that stays in ContainerCreating: its node is paid for all the while."""


@dataclass(frozen=True, slots=True)
class Verdict:
    status: EngineFailureStatus | None
    hold_until: datetime | None
    """no replica before this"""


def judge(observed: Observed, fleet: Fleet) -> Verdict:
    """A start counts as failed when no replica is ready and every started one keeps failing."""
    now = observed.now
    before = observed.status.engine_failure
    if before is not None and (before.generation != observed.generation or fleet.ready):
        before = None
    if before is not None and now < times.parse(before.retry_at):
        return Verdict(before, times.parse(before.retry_at))
    starting = [r for r in fleet.replicas if r.standing is Standing.STARTING]
    failed = [r for r in starting if _given_up(r, observed)]
    if not failed or fleet.ready or len(failed) < len(starting):
        return Verdict(before, None)
    failures = 1 if before is None else before.failures + 1
    wait_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures - 1, 16))
    retry_at = (now + timedelta(seconds=wait_s)).replace(microsecond=0)
    words = failed[0].view.failure or STUCK
    status = EngineFailureStatus(
        failures=failures,
        generation=observed.generation,
        retry_at=times.to_text(retry_at),
        message=words[:1000],
    )
    return Verdict(status, retry_at)


def _given_up(replica: Replica, observed: Observed) -> bool:
    view = replica.view
    started = view.running or view.restarts > 0
    begun = view.scheduled_at or view.created_at
    if view.failure is None:
        # The kubelet gives no reason while volumes are mounted and the image is pulled.
        if started or view.node is None:
            return False
    elif view.restarts >= GIVE_UP_RESTARTS:
        return True
    patient = started or view.failure is None
    limit_s = durations.seconds(observed.spec.engine.startup) if patient else NEVER_STARTED_S
    return observed.now - begun > timedelta(seconds=limit_s)
