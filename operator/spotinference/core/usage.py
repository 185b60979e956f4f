"""The figures of a usage record that are computed; what is counted stands in `core.account`."""

from __future__ import annotations

from array import array


def percentiles(values: array[float] | None, *percents: float) -> tuple[float | None, ...]:
    """For each, the value that so many % of them do not exceed; None of none."""
    if not values:
        return (None,) * len(percents)
    ordered = sorted(values)
    last = len(ordered) - 1
    return tuple(ordered[min(last, int(len(ordered) * percent / 100))] for percent in percents)
