"""How an engine's bytes reach a sink: whatever the reads, each byte once, in order, and none lost.

The reads are given by hand, so that a test says what comes in which turn of the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference.clients.engine_http import Answer, Broken
from spotinference.clients.engine_pool import Pool

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
SIZES = (1, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097)


class Wire(asyncio.Transport):
    """Takes what is written; knows whether it was cut."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        del data

    def abort(self) -> None:
        self.cut = True


class Reader:
    """An answer whose head has come, and what a sink got of its body."""

    def __init__(self, pool: Pool) -> None:
        self.wire = Wire()
        self.answer = Answer(pool, "http://engine:1")
        self.answer.connection_made(self.wire)
        self.answer.ask(b"", 60.0)
        self.answer.data_received(HEAD)
        self.got: list[bytes] = []
        self.task = asyncio.ensure_future(self.answer.pipe(self.take))

    def take(self, data: bytes) -> bool:
        self.got.append(data)
        return True

    def close(self) -> None:
        self.answer.connection_lost(None)


def chunk(data: bytes, length: bytes | None = None) -> bytes:
    return (length or b"%x" % len(data)) + b"\r\n" + data + b"\r\n"


def body(size: int) -> bytes:
    """Full of what looks like the framing of chunks."""
    return (b"10\r\n0\r\n\r\n\r\n" * (size // 11 + 1))[:size]


async def given_in(reads: list[bytes]) -> Reader:
    """Each read in a turn of its own."""
    reader = Reader(Pool(limit=9, keepalive_s=4.0))
    for read in reads:
        await asyncio.sleep(0)
        reader.answer.data_received(read)
    await asyncio.sleep(0)
    return reader


@pytest.mark.parametrize("length", [b"%x", b"%X", b"0%x", b"%x;name=value"])
async def test_chunks_of_every_size_and_spelling_come_whole(length: bytes) -> None:
    parts = [body(size) for size in SIZES for _ in range(2)]
    reader = await given_in([*(chunk(part, length % len(part)) for part in parts), LAST])
    assert await asyncio.wait_for(reader.task, 5)
    assert b"".join(reader.got) == b"".join(parts)
    assert not reader.wire.cut
    reader.close()


@given(data=st.data(), sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=6))
def test_every_byte_comes_once_and_in_order_however_the_reads_fall(
    data: st.DataObject, sizes: list[int]
) -> None:
    parts = [body(size) for size in sizes]
    raw = b"".join(map(chunk, parts)) + LAST
    ends = [len(chunk(part)) for part in parts]
    at_ends = [sum(ends[: n + 1]) for n in range(len(ends))]
    cuts = data.draw(
        st.sets(st.one_of(st.sampled_from(at_ends), st.integers(1, len(raw) - 1)), max_size=8)
    )
    edges = [0, *sorted(cuts), len(raw)]
    reads = [raw[a:b] for a, b in itertools.pairwise(edges)]

    async def run() -> None:
        reader = await given_in(reads)
        assert await asyncio.wait_for(reader.task, 5)
        assert b"".join(reader.got) == b"".join(parts)
        reader.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "wrong",
    [
        b"15\r\n" + body(20) + b"\r\n",
        b"13\r\n" + body(20) + b"\r\n",
        b"1_4\r\n" + body(20) + b"\r\n",
    ],
    ids=["one too many", "one too few", "no number"],
)
async def test_a_chunk_that_lies_about_its_length_is_never_taken_for_whole(wrong: bytes) -> None:
    good = body(20)
    reader = await given_in([chunk(good), chunk(good), wrong, chunk(good)])
    reader.close()
    with pytest.raises(Broken):
        await asyncio.wait_for(reader.task, 5)
    assert b"".join(reader.got).startswith(good + good)
    assert b"".join(reader.got) != good * 4


async def test_what_came_in_one_turn_is_given_in_its_order_after_all_was_read() -> None:
    pool = Pool(limit=9, keepalive_s=4.0)
    readers = [Reader(pool) for _ in range(3)]
    await asyncio.sleep(0)
    for number in range(3):
        for reader in readers:
            reader.answer.data_received(chunk(b"%d" % number * 20))
    assert [reader.got for reader in readers] == [[], [], []]
    await asyncio.sleep(0)
    assert [[part[:1] for part in reader.got] for reader in readers] == [[b"0", b"1", b"2"]] * 3
    for reader in readers:
        reader.close()
        reader.task.cancel()
    await asyncio.gather(*(reader.task for reader in readers), return_exceptions=True)


async def test_what_came_before_a_loss_is_given_before_it() -> None:
    reader = Reader(Pool(limit=9, keepalive_s=4.0))
    await asyncio.sleep(0)
    reader.answer.data_received(chunk(body(20)))
    reader.answer.connection_lost(ConnectionResetError())
    with pytest.raises(Broken):
        await asyncio.wait_for(reader.task, 5)
    assert reader.got == [body(20)]


async def test_a_sink_that_fails_costs_no_other_answer_a_byte() -> None:
    pool = Pool(limit=9, keepalive_s=4.0)
    first, second = Reader(pool), Reader(pool)
    await asyncio.sleep(0)

    def fails(_: bytes) -> bool:
        raise LookupError("no")

    first.answer._sink = fails
    for reader in (first, second):
        reader.answer.data_received(chunk(body(20)))
    with pytest.raises(LookupError):
        await asyncio.wait_for(first.task, 5)
    assert second.got == [body(20)]
    for reader in (first, second):
        reader.close()
    await asyncio.gather(second.task, return_exceptions=True)


async def test_who_wakes_up_lets_the_tokens_of_others_go_first() -> None:
    """A step in the middle of a request takes as long as many tokens."""
    pool = Pool(limit=9, keepalive_s=4.0)
    other, live = Reader(pool), Reader(pool)
    order: list[str] = []

    async def step() -> None:
        await asyncio.sleep(0)
        await other.answer.head()  # is there: the next wait is for the body
        with contextlib.suppress(Broken):
            await other.answer.part()
        order.append("step")

    def take(_: bytes) -> bool:
        order.append("token")
        return True

    other.task.cancel()
    waiting = asyncio.ensure_future(step())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    live.answer._sink = take
    other.answer.drop()
    live.answer.data_received(chunk(body(20)))
    await asyncio.wait_for(waiting, 5)
    assert order == ["token", "step"]
    live.close()
    other.close()
    await asyncio.gather(live.task, other.task, return_exceptions=True)


async def test_a_body_that_looks_like_a_chunk_is_a_body() -> None:
    inner = chunk(body(20))
    long = body(16) + b"\r\n" + body(254)
    reads = [
        chunk(body(20)),
        *(b"%x\r\n" % (len(inner) + 8) + b"--", inner, b"------" + b"\r\n"),
        *(chunk(body(20)) + b"1", b"10\r\n" + long[:18], long[18:] + b"\r\n"),
        LAST,
    ]
    reader = await given_in(reads)
    assert await asyncio.wait_for(reader.task, 5)
    assert b"".join(reader.got) == body(20) + b"--" + inner + b"------" + body(20) + long
    reader.close()


async def test_nothing_overtakes_what_waits_for_a_sink_that_has_gone() -> None:
    reader = Reader(Pool(limit=9, keepalive_s=4.0))
    await asyncio.sleep(0)
    reader.answer.data_received(chunk(b"a" * 20))
    reader.answer._sink = None
    reader.answer.data_received(chunk(b"b" * 20))
    assert await asyncio.wait_for(reader.answer.part(), 5) == b"a" * 20 + b"b" * 20
    reader.close()
    reader.task.cancel()
    await asyncio.gather(reader.task, return_exceptions=True)
