"""How long to wait for an engine: sized by the request and by what its tier was measured at.

A deadline that is too short turns a full queue into lost answers, so all of them lean to the long
side: several times what was measured, never below a floor, and the ceiling while nothing was
measured. A wait that ran into its deadline is itself a measurement (`after_first` with its length):
the next one is longer, as TCP's retransmission timer backs off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LARGE_PROMPT_TOKENS = 512
"""From here on the prefill, not the queue, is what a first token waits for."""
GAIN = 0.125
DEVIATION_GAIN = 0.25
"""Of a new measurement in the smoothed mean and deviation: those of TCP (RFC 6298)."""
DEVIATIONS = 4
MARGIN = 3.0
"""Of what was measured; a batch that fills up is no lost replica."""
GAP_MARGIN = 50.0
"""Between two reads: a preempted or chunk-prefilled batch pauses for many steps."""
TOTAL_MARGIN = 10.0


@dataclass(frozen=True, slots=True)
class Smooth:
    """Mean and mean deviation of a measured duration, smoothed."""

    mean: float
    deviation: float

    @property
    def high(self) -> float:
        return self.mean + DEVIATIONS * self.deviation


@dataclass(frozen=True, slots=True)
class Speed:
    """What a tier was measured at; None where nothing was yet."""

    first_s: Smooth | None = None
    """to the first token of a short prompt, or beyond the prefill of a large one"""
    prefill_tokens_per_s: float | None = None
    gap_s: Smooth | None = None
    """between two reads of a stream, by answer"""
    answer_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """Floors and ceilings in seconds (settings)."""

    first_floor_s: float
    first_ceiling_s: float
    next_floor_s: float
    next_ceiling_s: float
    total_floor_s: float
    total_ceiling_s: float


@dataclass(frozen=True, slots=True)
class Deadlines:
    first_s: float
    """request sent to first byte of the answer's body"""
    next_s: float
    """between two reads"""
    total_s: float
    """request sent to the end of the answer"""


def deadlines(
    prompt_tokens: int, max_tokens: int | None, speed: Speed, bounds: Bounds
) -> Deadlines:
    """For one request; each grows with its prompt and its answer, never with a better speed."""
    first_s = _first(prompt_tokens, speed, bounds)
    total_s = bounds.total_ceiling_s
    if speed.gap_s is not None and max_tokens is not None:
        decode_s = TOTAL_MARGIN * max_tokens * speed.gap_s.high
        total_s = _within(bounds.total_floor_s, first_s + decode_s, bounds.total_ceiling_s)
    return Deadlines(first_s=first_s, next_s=next_s(speed, bounds), total_s=max(total_s, first_s))


def next_s(speed: Speed, bounds: Bounds) -> float:
    """Between two reads of a stream."""
    if speed.gap_s is None:
        return bounds.next_ceiling_s
    return _within(bounds.next_floor_s, GAP_MARGIN * speed.gap_s.high, bounds.next_ceiling_s)


def after_first(speed: Speed, prompt_tokens: int, took_s: float) -> Speed:
    """With one more time to first token."""
    if prompt_tokens < LARGE_PROMPT_TOKENS:
        return replace(speed, first_s=_smoothed(speed.first_s, took_s))
    measured = prompt_tokens / max(took_s, 1e-6)
    known = speed.prefill_tokens_per_s
    rate = measured if known is None else known + GAIN * (measured - known)
    beyond_s = max(0.0, took_s - prompt_tokens / rate)
    return replace(speed, prefill_tokens_per_s=rate, first_s=_smoothed(speed.first_s, beyond_s))


def after_answer(speed: Speed, reads: int, took_s: float) -> Speed:
    """With one more streamed answer: so many reads, so long from the first to the last."""
    known = speed.answer_tokens
    speed = replace(speed, answer_tokens=reads if known is None else known + GAIN * (reads - known))
    return (
        replace(speed, gap_s=_smoothed(speed.gap_s, took_s / (reads - 1))) if reads > 1 else speed
    )


def _first(prompt_tokens: int, speed: Speed, bounds: Bounds) -> float:
    large = prompt_tokens >= LARGE_PROMPT_TOKENS
    if speed.first_s is None or (large and speed.prefill_tokens_per_s is None):
        return bounds.first_ceiling_s
    prefill_s = prompt_tokens / speed.prefill_tokens_per_s if speed.prefill_tokens_per_s else 0.0
    return _within(
        bounds.first_floor_s, MARGIN * (speed.first_s.high + prefill_s), bounds.first_ceiling_s
    )


def _smoothed(known: Smooth | None, measured: float) -> Smooth:
    if known is None:
        return Smooth(measured, measured / 2)
    off = measured - known.mean
    return Smooth(
        known.mean + GAIN * off,
        known.deviation + DEVIATION_GAIN * (abs(off) - known.deviation),
    )


def _within(low: float, value: float, high: float) -> float:
    return min(max(low, value), high)
