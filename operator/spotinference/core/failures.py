"""When an engine will not start: stop burning GPU time, and try again ever more rarely."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from spotinference.api import times
from spotinference.api.tier_status import EngineFailureStatus
from spotinference.core.fleet import Fleet, Standing
from spotinference.core.observed import Observed

FIRST_BACKOFF_S = 60.0
MAX_BACKOFF_S = 3600.0

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


def judge(observed: Observed, fleet: Fleet, *, elsewhere: bool) -> Verdict:
    """A wake counts as failed when no replica is ready and every launch is given up (`launches`).

    `elsewhere`: a market is left that may do better; then it is not the tier's fault yet.
    """
    now = observed.now
    before = observed.status.engine_failure
    if before is not None and (before.generation != observed.generation or fleet.ready):
        before = None
    if before is not None:
        retry_at = times.parse(before.retry_at)
        # A pause beyond the longest was written by a clock ahead of ours.
        if now < retry_at <= now + timedelta(seconds=MAX_BACKOFF_S):
            return Verdict(before, retry_at)
    starting = [r for r in fleet.replicas if r.standing is Standing.STARTING]
    failed = [r for r in fleet.replicas if r.standing is Standing.FAILED]
    if not failed or fleet.ready or starting or elsewhere:
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
