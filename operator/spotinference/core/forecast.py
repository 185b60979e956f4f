"""How much will arrive one cold start from now: forecasts that are believed as far as they earned.

Four experts look ahead from the same minutes of arrivals: the load of the last minutes; the recent
peak, for a load of bursts; the load plus its trend; the load plus what this time of day did on the
days before.
Each has a margin, learned online so that what came exceeded forecast x margin in only
`MISSED_SHARE` of the minutes (adaptive conformal inference, Gibbs and Candes 2021, with a bound);
and a decayed loss: the pinball loss of forecast x margin, the price of too few replicas against
that of too many. The expert with the least loss is heeded, so a daily pattern counts from the day
on which it would have been the better adviser, and stops when it no longer is.

Called by `core.sizing`, once a minute; pure, and the state is small enough for a ConfigMap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

MINUTE_S = 60.0
DAY_S = 86_400.0
SLOTS = 96
"""The daily pattern has a mean rate for each quarter of an hour."""
SLOT_S = DAY_S / SLOTS
PATTERN_WEIGHT = 0.4
"""Of the newest day in the pattern: three days hold four fifths of it."""
SMOOTHING_S = (30.0, 60.0, 600.0)
"""Time constants of the smoothed rates: what arrives now, the load, and slowly (for the trend)."""
MISSED_SHARE = 0.1
"""Share of minutes in which more may arrive than was planned for: the steps up leave room above it."""
MARGIN_STEP = 0.01
"""How far one missed minute widens a margin; a kept one narrows it by this x MISSED_SHARE."""
MARGIN_FIRST = 1.25
MARGIN_MOST = 1.5
"""No margin is wider: beyond it the queue's own term must answer, not replicas that stand by."""
QUANTILE = 0.95
"""Too few replicas cost 19 times as much as too many, for the choice of the expert."""
MEMORY_S = 2 * DAY_S
"""Half-life of what an expert has earned."""
EARLY_S = 300.0
"""A slot of the daily pattern is looked at this much earlier: jobs do not start on the second."""

PEAK_S = 1800.0
"""Time constant with which the recent peak is forgotten."""
MARGIN_LEAST = 0.8
"""A peak need not be expected in full."""

USUAL, PEAK, TREND, DAILY = range(4)
NAMES = ("the last minutes", "the recent peak", "the trend", "the daily pattern")


Levels = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Skill:
    """What one expert has earned."""

    margin: float = MARGIN_FIRST
    loss: float | None = None
    """decayed mean pinball loss in requests/s; None: never judged"""


@dataclass(frozen=True, slots=True)
class Made:
    """A forecast that is not due yet."""

    due_s: float
    values: tuple[float | None, ...]
    uppers: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Forecaster:
    """All that is remembered. `levels` None: no minute seen yet."""

    levels: Levels | None = None
    """requests/s: of now, usual, slow, and the recent peak"""
    pattern: tuple[float | None, ...] = (None,) * SLOTS
    """mean requests/s of each slot of the day, newest days first in weight"""
    slot: int = -1
    """number of the slot under way, since the epoch; -1: none"""
    slot_sum: float = 0.0
    slot_minutes: int = 0
    skills: tuple[Skill, ...] = (Skill(),) * len(NAMES)
    made: tuple[Made, ...] = ()


@dataclass(frozen=True, slots=True)
class Switches:
    """What an ablation turns off."""

    experts: tuple[int, ...] = field(default=(USUAL, PEAK, TREND, DAILY))


@dataclass(frozen=True, slots=True)
class Outlook:
    """Requests per second: now, and what to be ready for one cold start from now."""

    now: float
    upper: float
    expert: int


def observe(state: Forecaster, at_s: float, rate: float, ahead_s: float) -> Forecaster:
    """After one more minute that ended at `at_s` with `rate` requests/s; forecasts `ahead_s`."""
    skills = state.skills
    pending = 0
    for made in state.made:
        if made.due_s > at_s:
            break
        pending += 1
        skills = _judged(skills, made, rate)
    learned = _slotted(replace(state, levels=_smoothed(state.levels, rate)), at_s, rate)
    values = _values(learned, at_s, ahead_s)
    uppers = tuple((v or 0.0) * skill.margin for v, skill in zip(values, skills, strict=True))
    made_now = Made(at_s + ahead_s, values, uppers)
    return replace(learned, skills=skills, made=(*state.made[pending:], made_now))


def outlook(
    state: Forecaster, at_s: float, ahead_s: float, switches: Switches = Switches()
) -> Outlook:
    """The forecast of the best expert, never less than what arrives now, times its margin."""
    if state.levels is None:
        return Outlook(0.0, 0.0, USUAL)
    values = _values(state, at_s, ahead_s)
    judged = [e for e in switches.experts if state.skills[e].loss is not None]
    best = min(judged, key=lambda e: state.skills[e].loss or 0.0, default=USUAL)
    value = values[best]
    usual = state.levels[1]
    margin = state.skills[best].margin
    return Outlook(state.levels[0], max((usual if value is None else value) * margin, usual), best)


def _smoothed(levels: Levels | None, rate: float) -> Levels:
    if levels is None:
        return rate, rate, rate, rate
    fast, usual, slow = (
        level + (rate - level) * (1 - math.exp(-MINUTE_S / constant))
        for level, constant in zip(levels, SMOOTHING_S, strict=False)
    )
    return fast, usual, slow, max(usual, levels[3] * math.exp(-MINUTE_S / PEAK_S))


def _slotted(state: Forecaster, at_s: float, rate: float) -> Forecaster:
    """The minute counted in its slot; a slot that is over enters the pattern."""
    slot = math.floor((at_s - MINUTE_S / 2) / SLOT_S)
    if slot == state.slot:
        return replace(state, slot_sum=state.slot_sum + rate, slot_minutes=state.slot_minutes + 1)
    pattern = state.pattern
    if state.slot_minutes > 0:
        place = state.slot % SLOTS
        mean = state.slot_sum / state.slot_minutes
        before = pattern[place]
        value = mean if before is None else before + PATTERN_WEIGHT * (mean - before)
        pattern = (*pattern[:place], value, *pattern[place + 1 :])
    return replace(state, pattern=pattern, slot=slot, slot_sum=rate, slot_minutes=1)


def _values(state: Forecaster, at_s: float, ahead_s: float) -> tuple[float | None, ...]:
    assert state.levels is not None
    _, usual, slow, peak = state.levels
    slope = (usual - slow) / (SMOOTHING_S[2] - SMOOTHING_S[1])
    return (usual, peak, max(0.0, usual + slope * ahead_s), _daily(state, at_s, ahead_s))


def _daily(state: Forecaster, at_s: float, ahead_s: float) -> float | None:
    """The usual level, plus what this time of day adds until then; None without such a day.

    A difference and not a ratio: a job that starts every night from nothing has no ratio.
    """
    assert state.levels is not None
    here = state.pattern[math.floor(at_s / SLOT_S) % SLOTS]
    there = [
        state.pattern[math.floor((at_s + ahead_s + early) / SLOT_S) % SLOTS]
        for early in (0.0, EARLY_S)
    ]
    known = [value for value in there if value is not None]
    if here is None or len(known) < len(there):
        return None
    return max(0.0, state.levels[1] + max(known) - here)


def _judged(skills: tuple[Skill, ...], made: Made, rate: float) -> tuple[Skill, ...]:
    """Each expert's loss and margin after what really came."""
    weight = 1 - 0.5 ** (MINUTE_S / MEMORY_S)
    worst = max((s.loss for s in skills if s.loss is not None), default=None)
    result = []
    for skill, value, upper in zip(skills, made.values, made.uppers, strict=True):
        if value is None:
            result.append(skill)
            continue
        short = rate - upper
        loss = QUANTILE * short if short > 0 else (QUANTILE - 1) * short
        before = skill.loss
        if before is None:
            before = loss if worst is None else worst  # a newcomer begins as the worst
        missed = rate > value * skill.margin
        margin = skill.margin + MARGIN_STEP * ((1.0 if missed else 0.0) - MISSED_SHARE)
        result.append(
            Skill(min(MARGIN_MOST, max(MARGIN_LEAST, margin)), before + weight * (loss - before))
        )
    return tuple(result)
