"""Reading traces: what is wrong is named with its remedy, and nothing else is raised."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference import errors
from spotinference.simulate import traces


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "metadata.gap_seconds is missing"),
        ('{"data": [1]}', "metadata.gap_seconds is missing"),
        ('{"metadata": {"gap_seconds": 0}, "data": [1]}', "must be above 0"),
        ('{"metadata": {"gap_seconds": 1e308}, "data": [1]}', "at most a year"),
        ('{"metadata": {"gap_seconds": "5"}, "data": [1]}', "no number"),
        ('{"metadata": {"gap_seconds": 5}}', "data is missing or empty"),
        ('{"metadata": {"gap_seconds": 5}, "data": []}', "data is missing or empty"),
        ('{"metadata": {"gap_seconds": 5}, "data": [1, -2]}', "data[1] is -2"),
        ('{"metadata": {"gap_seconds": 5}, "data": [1, null]}', "data[1] is None"),
    ],
)
def test_a_bad_trace_is_named_with_its_field(text: str, said: str) -> None:
    with pytest.raises(errors.ConfigInvalid, match=r"a\.json") as caught:
        traces.parse("a.json", text.encode())
    assert said in str(caught.value)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_sentence(text: bytes) -> None:
    with contextlib.suppress(errors.ConfigInvalid):
        traces.parse("a.json", text)


@given(
    st.recursive(
        st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["metadata", "gap_seconds", "data"]), inner)
        ),
    )
)
def test_no_json_raises_anything_but_a_sentence(found: object) -> None:
    with contextlib.suppress(errors.ConfigInvalid):
        traces.parse("a.json", json.dumps(found).encode())


def test_zones_are_read_at_their_own_gap_over_what_they_have_in_common() -> None:
    coarse = traces.Zone("a", 300, (1, 2, 3))
    fine = traces.Zone("b", 60, tuple(range(10)))
    (window,) = traces.windows([coarse, fine], count=1, hours=1 / 6, share=(0, 1), tick_s=60)
    assert window.capacity == tuple((1 + i // 5, i) for i in range(10))


def test_a_window_longer_than_its_share_is_refused_with_both_numbers() -> None:
    with pytest.raises(errors.ConfigInvalid, match=r"has 2\.5 hours"):
        traces.windows(
            [traces.Zone("a", 3600, (1,) * 5)], count=1, hours=24, share=(0, 0.5), tick_s=30
        )


def test_true_and_false_are_one_and_none() -> None:
    text = b'{"metadata": {"gap_seconds": 5}, "data": [true, false, 1, 2.7]}'
    assert traces.parse("a.json", text).capacity == (1, 0, 1, 2)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigInvalid, match=r"--trace .*nope.json: No such file"):
        traces.load([tmp_path / "nope.json"])


def test_files_of_one_name_in_two_folders_are_two_zones(tmp_path: Path) -> None:
    paths = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "us-east-1a_v100_1.json"
        path.write_text('{"metadata": {"gap_seconds": 5}, "data": [1]}')
        paths.append(path)
    zones = traces.load(paths)
    assert [z.name for z in zones] == ["one/us-east-1a_v100_1", "two/us-east-1a_v100_1"]
    assert {z.place for z in zones} == {"us-east-1a"}


def test_files_of_one_name_in_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = []
    for folder in ("one/spot", "two/spot"):
        (tmp_path / folder).mkdir(parents=True)
        path = tmp_path / folder / "us-east-1a_v100_1.json"
        path.write_text('{"metadata": {"gap_seconds": 5}, "data": [1]}')
        paths.append(path)
    zones = traces.load([*paths, paths[0]])
    assert len({z.name for z in zones}) == 3
    assert {z.place for z in zones} == {"us-east-1a"}


def test_a_byte_order_mark_is_not_part_of_a_trace() -> None:
    text = b'\xef\xbb\xbf{"metadata": {"gap_seconds": 5}, "data": [1]}'
    assert traces.parse("a.json", text).capacity == (1,)


def test_windows_are_made_one_by_one() -> None:
    zone = traces.Zone("a", 3600, (1,) * 200)
    tracemalloc.start()
    for window in traces.windows([zone], count=40, hours=24, share=(0, 1), tick_s=30):
        assert len(window.capacity) == 2880
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1_000_000
