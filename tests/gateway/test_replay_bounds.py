"""Recordings: one request is asked once, waits as long as it may, and goes when it is forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tracemalloc
import weakref

import orjson
import pytest

from spotinference.api.kinds import POD
from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.errors import Code, GatewayError
from spotinference.gateway.replay import PIECE_BYTES, Asked, Recording
from spotinference.gateway.replays import Replays
from tests.gateway.raw_table import post
from tests.gateway.test_forward import SELECTOR, pod
from tests.gateway.test_hostile_http import address
from tests.gateway.test_replay import ask, serving
from tests.support.eventually import eventually
from tests.support.gateway import bench, chat
from tests.support.virtual_time import VirtualClock, virtual_time


async def test_two_retries_that_both_find_their_keeper_gone_are_asked_once() -> None:
    async with serving(tokens_per_s=100, peers_selector=SELECTOR) as (b, engine, session):
        b.kube.put(POD, pod("gw-test", b.url))
        b.kube.put(POD, pod("gw-gone", "http://127.0.0.1:1"))
        forward = b.gateway.context.forward
        await eventually(lambda: len(forward._peers.addresses) == 2, 5)
        for number in range(8):  # half of them are the other's
            body, key = chat(max_tokens=20, ignore_eos=True), f"k-{number}"
            engine.sim.requests.clear()
            seen = await asyncio.gather(
                *(ask(session, body, Idempotency_Key=key) for _ in range(3))
            )
            assert len({one.raw for one in seen}) == 1, key
            assert len(engine.sim.requests) == 1, key


@virtual_time
async def test_who_loses_the_connection_twice_has_the_whole_time_twice(clock: VirtualClock) -> None:
    replays = Replays(GatewaySettings())
    recording = Recording("key", "0" * 32, b"", 1000)

    async def endless() -> None:
        await asyncio.Event().wait()

    task = replays.record(recording, Asked(ids=True), endless())
    for back_after_s in (0, 30, 59):
        await asyncio.sleep(back_after_s)
        player = recording.join(0)
        recording.leave(player)
        replays.left(recording)
    left_at = clock.monotonic()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert clock.monotonic() - left_at == 60


async def test_an_answer_that_was_dropped_for_another_takes_no_memory() -> None:
    async with serving(max_recordings=2) as (b, _, session):
        replays = b.gateway.context.replays
        made: list[weakref.ref[object]] = []
        for number in range(5):
            await ask(session, chat(max_tokens=3), Idempotency_Key=f"k-{number}")
            made += [weakref.ref(one) for one in replays._by_request.values()]
        gc.collect()
        alive = {id(one) for ref in made if (one := ref()) is not None}
        assert len(alive) == len(replays._by_request) == 2


async def test_a_recorded_request_that_waits_holds_one_copy_of_its_prompt() -> None:
    size = 8_000_000
    async with bench(fail_fast_s=60) as b:
        await b.tier("demo")
        reader, writer = await asyncio.open_connection(*address(b))
        tracemalloc.start()
        try:
            content = orjson.dumps(chat("x" * size))
            writer.write(post("Idempotency-Key: k", content=content))
            del content
            await writer.drain()
            await eventually(lambda: b.parked() == 1, 5)
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            writer.transport.abort()
        del reader
        assert size < held < 1.5 * size


async def test_a_player_is_given_a_long_answer_piece_by_piece() -> None:
    recording = Recording("key", "0" * 32, b"", 1 << 20)
    recording.begin({})
    for _ in range(1000):
        recording.append(b"data: " + b"x" * 992 + b"\n\n")
    recording.finish()
    player = recording.join(0)
    given = 0
    while writes := await recording.more(player):
        assert sum(map(len, writes)) <= PIECE_BYTES
        given += sum(map(len, writes))
    assert given == 1_000_000


async def test_no_key_leaves_the_others_without_recordings() -> None:
    replays = Replays(GatewaySettings())

    def record(owner: str, number: int) -> None:
        recording = Recording(owner, f"{owner}-{number}", b"", 1 << 20)
        replays.record(recording, Asked(idempotency=str(number)), endless())

    async def endless() -> None:
        await asyncio.Event().wait()

    for number in range(192):
        record("greedy", number)
    with pytest.raises(GatewayError) as refused:
        record("greedy", 192)
    assert refused.value.code is Code.RECORDINGS_FULL
    for number in range(10):
        record("other", number)
    await asyncio.sleep(0)  # all have begun
    await replays.close()
