"""The event parser: the same events, however the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference.core.stream import Event, EventTooLong, Framer, events

LINE = st.sampled_from(
    [
        b"data: {}",
        b"data:x",
        b"data: ",
        b"data",
        b": keep-alive",
        b"event: message",
        b"id: 7",
        b"",
        b"nonsense",
        "data: é€😀".encode(),
    ]
)
END = st.sampled_from([b"\n", b"\r\n", b"\r"])
DOCUMENT = st.lists(st.tuples(LINE, END), max_size=30).map(
    lambda lines: b"".join(line + end for line, end in lines) + b"\n\n"
)


def read(*parts: bytes) -> list[Event]:
    framer = Framer()
    return [event for part in parts for event in events(framer.feed(part))]


def cut(data: bytes, points: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(point % (len(data) + 1) for point in points)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


@given(DOCUMENT, st.lists(st.integers(0, 10_000), max_size=20))
def test_any_split_gives_the_same_events(document: bytes, points: list[int]) -> None:
    assert read(*cut(document, points)) == read(document)


@given(DOCUMENT)
def test_byte_by_byte_gives_the_same_events(document: bytes) -> None:
    assert read(*(bytes([byte]) for byte in document)) == read(document)


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=10))
def test_a_framer_neither_loses_nor_invents_a_byte(data: bytes, points: list[int]) -> None:
    framer = Framer()
    out = b"".join(framer.feed(part) for part in cut(data, points))
    assert out + framer.pending == data


@given(st.lists(st.binary(max_size=50).filter(lambda b: b"\n" not in b and b"\r" not in b)))
def test_events_come_out_as_they_went_in(payloads: list[bytes]) -> None:
    document = b"".join(b"data: " + payload + b"\n\n" for payload in payloads)
    assert [event.data for event in events(document)] == payloads


def test_an_unfinished_event_is_never_reported() -> None:
    assert read(b"data: one\n\ndata: two\n") == [Event(b"one")]
    assert read(b"data: one\n\ndata: two\n", b"\n") == [Event(b"one"), Event(b"two")]


def test_comments_are_keep_alives_and_several_data_lines_are_one_event() -> None:
    found = read(b": hello\n\nevent: e\ndata: a\ndata: b\n\n")
    assert found == [Event(None), Event(b"a\nb", b"e")]


def test_an_event_without_end_is_cut_off_at_the_bound() -> None:
    framer = Framer(limit=100)
    framer.feed(b"data: " + b"x" * 90)
    with pytest.raises(EventTooLong):
        framer.feed(b"xxxxx")
