"""`dev trace play`: which trace belongs to which market, and when what changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spotinference import errors
from spotinference.cli.dev_trace import Change, assign, script
from spotinference.core.observed import Market
from spotinference.simulate.traces import Zone

A, B = Market("spot", "us-east-1a"), Market("spot", "us-east-1b")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "us-east-1a_v100.json"
    path.write_text(json.dumps({"metadata": {"gap_seconds": 300}, "data": [1, 0]}))
    return path


def test_a_trace_goes_to_the_market_that_is_named_or_to_the_zone_of_its_name(file: Path) -> None:
    assert assign([f"spot/us-east-1b={file}"], [A, B])[B].capacity == (1, 0)
    assert assign([str(file)], [A, B]).keys() == {A}


@pytest.mark.parametrize("markets", [[B], [A, Market("other", "us-east-1a")]])
def test_a_zone_that_is_not_there_or_in_two_pools_must_be_named(
    file: Path, markets: list[Market]
) -> None:
    with pytest.raises(errors.ConfigInvalid, match=r"write POOL/ZONE=FILE with one of .*us-east"):
        assign([str(file)], markets)


def test_a_market_has_one_trace(file: Path) -> None:
    with pytest.raises(errors.ConfigInvalid, match="has a trace already"):
        assign([str(file), f"{A}={file}"], [A])


def test_changes_come_in_order_at_the_speed_asked_for() -> None:
    zones = {A: Zone("a", 300, (2, 2, 0, 1)), B: Zone("b", 600, (1, 3))}
    changes, length_s = script(zones, speed=60, begin=0, hours=None)
    assert length_s == 20
    assert changes == [
        Change(0, A, 2),
        Change(0, B, 1),
        Change(10, A, 0),
        Change(10, B, 3),
        Change(15, A, 1),
    ]


def test_a_play_may_begin_between_two_samples() -> None:
    zones = {A: Zone("a", 300, (2, 0, 1, 1))}
    changes, length_s = script(zones, speed=10, begin=0.05, hours=0.1)
    assert changes == [Change(0, A, 2), Change(12, A, 0)]
    assert length_s == 36


@pytest.mark.parametrize(("begin", "hours"), [(1.0, None), (0.0, 1.0), (0.5, 0.0001)])
def test_more_than_there_is_is_refused(begin: float, hours: float | None) -> None:
    with pytest.raises(errors.ConfigInvalid, match=r"0\.33 hours in common"):
        script({A: Zone("a", 300, (1, 1, 1, 1))}, 60, begin, hours)
