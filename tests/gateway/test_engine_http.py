"""The HTTP client to engines: every cut of an answer, every way in which one may fail to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from spotinference.clients.engine_http import (
    MAX_BUFFERED_BYTES,
    Answer,
    Broken,
    NoConnection,
    Silent,
)
from spotinference.clients.engine_pool import Pool
from tests.support.eventually import eventually
from tests.support.virtual_time import VirtualClock, virtual_time

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n"
SIZED = HEAD + b"Content-Length: 12\r\n\r\nhello, world"

Write = Callable[[asyncio.StreamWriter], object]


class Engine:
    """Answers each request with the next of the given scripts; the last one repeats."""

    def __init__(self, *scripts: Write | bytes) -> None:
        self._scripts = list(scripts)
        self.connections = 0
        self.requests = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
                if isinstance(script, bytes):
                    writer.write(script)
                else:
                    outcome = script(writer)
                    if asyncio.iscoroutine(outcome):
                        await outcome
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def served(*scripts: Write | bytes, **pool: float) -> AsyncIterator[tuple[Engine, Pool]]:
    engine = Engine(*scripts)
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    engine.url = f"http://{host}:{port}"
    connections = Pool(limit=int(pool.get("limit", 10)), keepalive_s=pool.get("keepalive_s", 4.0))
    try:
        yield engine, connections
    finally:
        await connections.aclose()
        server.close()
        await server.wait_closed()


async def get(pool: Pool, engine: Engine, silence_s: float = 5.0) -> Answer:
    return await pool.request("GET", engine.url, "/x", connect_timeout_s=2.0, silence_s=silence_s)


async def whole(answer: Answer) -> bytes:
    return b"".join([part async for part in answer.parts()])


def bytewise(raw: bytes) -> Write:
    async def write(writer: asyncio.StreamWriter) -> None:
        for at in range(len(raw)):
            writer.write(raw[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)

    return write


@pytest.mark.parametrize("raw", [CHUNKED, SIZED], ids=["chunked", "sized"])
@pytest.mark.parametrize("cut", ["whole", "bytewise"])
async def test_a_body_arrives_whole_however_it_was_cut_and_its_connection_is_used_again(
    raw: bytes, cut: str
) -> None:
    async with served(raw if cut == "whole" else bytewise(raw)) as (engine, pool):
        for _ in range(3):
            answer = await get(pool, engine)
            assert (answer.status, answer.content_type) == (200, "text/event-stream")
            assert await whole(answer) == b"hello, world"
            assert answer.ended
            answer.close()
        assert (engine.requests, engine.connections) == (3, 1)


async def test_an_interim_answer_is_no_answer() -> None:
    async with served(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + SIZED) as (engine, pool):
        answer = await get(pool, engine)
        assert answer.status == 200
        assert "link" not in answer.headers
        assert await whole(answer) == b"hello, world"
        answer.close()


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    def write(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"Connection: close\r\n\r\nhello")
        writer.close()

    async with served(write) as (engine, pool):
        for _ in range(2):
            answer = await get(pool, engine)
            assert await whole(answer) == b"hello"
            answer.close()
        assert engine.connections == 2


@pytest.mark.parametrize("at", [1, len(HEAD), len(CHUNKED) - 20, len(CHUNKED) - 1])
async def test_a_cut_answer_is_never_taken_for_a_whole_one(at: int) -> None:
    def write(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED[:at])
        writer.close()

    async with served(write) as (engine, pool):
        with pytest.raises(Broken):
            await whole(await get(pool, engine))


async def test_bytes_after_an_answer_are_never_the_next_answer() -> None:
    async with served(SIZED + SIZED.replace(b"hello", b"stale"), SIZED) as (engine, pool):
        for _ in range(2):
            answer = await get(pool, engine)
            assert await whole(answer) == b"hello, world"
            answer.close()
        assert engine.connections == 2


async def test_bytes_on_an_idle_connection_cut_it() -> None:
    later = asyncio.Event()

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(SIZED)
        await later.wait()
        writer.write(SIZED.replace(b"hello", b"stale"))

    async with served(write) as (engine, pool):
        answer = await get(pool, engine)
        assert await whole(answer) == b"hello, world"
        answer.close()
        later.set()
        await eventually(lambda: not pool._all, 2)


@pytest.mark.parametrize("stray", [b"\r\n", b"H", SIZED], ids=["line end", "byte", "answer"])
async def test_bytes_behind_an_answer_cut_its_connection_before_it_is_given_back(
    stray: bytes,
) -> None:
    later = asyncio.Event()

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(SIZED)
        await later.wait()
        writer.write(stray)

    async with served(write) as (engine, pool):
        answer = await get(pool, engine)
        assert await whole(answer) == b"hello, world"
        later.set()
        await eventually(lambda: not pool._all, 20)
        answer.close()
        assert pool.idle(engine.url) is None


async def test_an_answer_that_is_left_unread_cuts_its_connection() -> None:
    async with served(HEAD + b"Content-Length: 12\r\n\r\nhello") as (engine, pool):
        answer = await get(pool, engine)
        assert await answer.part() == b"hello"
        answer.close()
        assert pool.idle(engine.url) is None


async def test_silence_is_a_loss_before_the_head_and_within_the_body() -> None:
    async with served(lambda _: None, HEAD + b"Content-Length: 12\r\n\r\nhello") as (engine, pool):
        with pytest.raises(Silent):
            await get(pool, engine, silence_s=0.05)
        answer = await get(pool, engine)
        answer.expect_within(0.05)
        assert await answer.part() == b"hello"
        with pytest.raises(Silent):
            await answer.part()


async def test_what_is_not_http_is_a_loss() -> None:
    too_long = b"".join(b"X-%d: %s\r\n" % (n, b"x" * 1000) for n in range(70))
    for raw in (b"SSH-2.0-OpenSSH\r\n\r\n", HEAD + too_long + b"\r\n"):
        async with served(raw) as (engine, pool):
            with pytest.raises(Broken):
                await get(pool, engine)


async def test_nobody_there_is_no_connection() -> None:
    async with served(SIZED) as (engine, pool):
        url = engine.url
    with pytest.raises(NoConnection):
        await pool.request("GET", url, "/", connect_timeout_s=1, silence_s=1)


async def test_connections_are_bounded() -> None:
    async with served(HEAD + b"Content-Length: 9\r\n\r\n", limit=2) as (engine, pool):
        held = [await get(pool, engine) for _ in range(2)]
        with pytest.raises(NoConnection, match="2 connections"):
            await get(pool, engine)
        held[0].close()
        await eventually(lambda: len(pool._all) == 1, 5)
        await get(pool, engine)


async def test_an_old_idle_connection_is_closed_and_not_used() -> None:
    async with served(SIZED, keepalive_s=0.0) as (engine, pool):
        for _ in range(2):
            answer = await get(pool, engine)
            await whole(answer)
            answer.close()
        assert engine.connections == 2


async def test_a_sink_gets_every_byte_in_order_and_may_stop_in_between() -> None:
    async with served(bytewise(CHUNKED)) as (engine, pool):
        answer = await get(pool, engine)
        got: list[bytes] = []

        def sink(data: bytes) -> bool:
            got.append(data)
            return len(b"".join(got)) != 5

        assert not await answer.pipe(sink)
        assert b"".join(got) == b"hello"
        assert await answer.pipe(sink)
        assert b"".join(got) == b"hello, world"
        answer.close()
        assert pool.idle(engine.url) is answer


async def test_what_a_sink_raises_is_raised_where_it_was_given() -> None:
    def sink(_: bytes) -> bool:
        raise LookupError("no")

    async with served(bytewise(CHUNKED)) as (engine, pool):
        answer = await get(pool, engine)
        with pytest.raises(LookupError):
            await answer.pipe(sink)
        answer.close()
        assert pool.idle(engine.url) is None


async def test_an_engine_waits_while_nobody_reads() -> None:
    size = 16 * 1024 * 1024
    sent = 0

    async def write(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"x" * 65536)
            sent += 65536
            await writer.drain()

    async with served(write) as (engine, pool):
        answer = await get(pool, engine)
        before = -1
        while sent != before:  # until the engine is stuck
            before = sent
            await asyncio.sleep(0.05)
        assert sent < size
        assert answer._buffered < 1024 * 1024
        assert len(await whole(answer)) == size
        answer.close()


async def test_an_engine_whose_last_connection_broke_leaves_nothing_behind() -> None:
    async with served(SIZED, lambda writer: writer.transport.abort()) as (engine, pool):
        first = await get(pool, engine)
        assert await whole(first) == b"hello, world"
        first.close()
        with pytest.raises(Broken):
            await get(pool, engine)
        assert engine.connections == 1
        await eventually(lambda: not pool._all, 5)
        assert pool._idle == {}


class _Transport(asyncio.Transport):
    def write(self, data: bytes | bytearray | memoryview) -> None:
        return

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return

    def abort(self) -> None:
        return


@virtual_time
async def test_an_engine_that_had_to_wait_for_us_has_its_whole_time_again(
    clock: VirtualClock,
) -> None:
    answer = Answer(Pool(limit=1, keepalive_s=4.0), "http://engine")
    answer.connection_made(_Transport())
    answer.ask(b"", silence_s=60)
    large = b"x" * (MAX_BUFFERED_BYTES + 1)
    answer.data_received(HEAD + b"Content-Length: %d\r\n\r\n" % (len(large) + 1) + large)
    assert answer.paused
    await asyncio.sleep(89)
    assert await answer.part() == large
    await asyncio.sleep(50)
    answer.data_received(b"y")
    assert await answer.part() == b"y"
    assert answer.ended
    assert clock.monotonic() == 139
