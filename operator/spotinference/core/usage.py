"""The figures of a usage record that are computed; what is counted stands in `core.account`."""

from __future__ import annotations

from array import array


def percentile(values: array[float], percent: float) -> float | None:
    """The value that `percent` % of them do not exceed; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
