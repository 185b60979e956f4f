"""The computed figures of a usage record."""

from __future__ import annotations

from array import array

import pytest

from spotinference.core.usage import percentiles


def test_percentiles_are_values_that_occurred() -> None:
    values = array("f", [4.0, 1.0, 3.0, 2.0])
    assert percentiles(values, 0, 50, 95, 100) == (1.0, 3.0, 4.0, 4.0)
    assert percentiles(array("f", [7.0]), 50, 95) == (7.0, 7.0)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_of_nothing_there_is_no_percentile(count: int) -> None:
    assert percentiles(array("f"), *range(count)) == (None,) * count
