"""When a waking tier will be ready: from how long each stage of its own earlier wakes took.

A wake is late or early stage by stage: once the machine is there, how long it took to find one says
nothing about how long the weights will take. So the estimate is what is left of the present stage
plus what the later ones usually take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from spotinference.api import times
from spotinference.api.conditions import WakeStage
from spotinference.api.tier_status import WakeStatus

DECISION = "decision"
"""From the first waiting request to the first stage."""
ORDER = (
    DECISION, WakeStage.WEIGHTS, WakeStage.SCHEDULING, WakeStage.STARTING, WakeStage.LOADING,
)  # fmt: skip
GAIN = 0.5
"""Of a new wake in what is usual: spot capacity changes from day to day, so the last ones count."""

Profile = Mapping[str, float]
"""Seconds that each stage usually takes."""


@dataclass(frozen=True, slots=True)
class Wake:
    """A wake as the operator writes it in the tier's status."""

    started_at: datetime
    stages: tuple[tuple[str, datetime], ...]
    ready_at: datetime | None

    @classmethod
    def of(cls, status: WakeStatus) -> Wake:
        """ValueError when a time is none."""
        return cls(
            started_at=times.parse(status.started_at),
            stages=tuple((s.name, times.parse(s.started_at)) for s in status.stages),
            ready_at=times.parse(status.ready_at) if status.ready_at else None,
        )


def measured(wake: Wake) -> dict[str, float]:
    """What each stage of a finished wake took; a stage that came twice counts twice."""
    assert wake.ready_at is not None
    took: dict[str, float] = {}
    steps = [(DECISION, wake.started_at)]
    steps += [step for step in wake.stages if step[0] != WakeStage.READY]
    ends = [at for _, at in steps[1:]] + [wake.ready_at]
    for (name, at), end in zip(steps, ends, strict=True):
        took[name] = took.get(name, 0.0) + max(0.0, (end - at).total_seconds())
    return took


def learned(known: Profile | None, took: Profile) -> Profile:
    """What is usual, with one more wake."""
    if known is None:
        return dict(took)
    names = {*known, *took}
    return {
        name: known.get(name, 0.0) + GAIN * (took.get(name, 0.0) - known.get(name, 0.0))
        for name in names
    }


def total_s(profile: Profile) -> float:
    """A whole wake."""
    return sum(profile.values())


def remaining_s(profile: Profile, stage: str, in_stage_s: float) -> float:
    """What is left of a wake that has been in this stage so long.

    A stage that takes longer than usual is expected to be late by as much again.
    """
    at = ORDER.index(stage) if stage in ORDER else 0
    later_s = sum(profile.get(name, 0.0) for name in ORDER[at + 1 :])
    return later_s + abs(profile.get(stage, 0.0) - in_stage_s)
