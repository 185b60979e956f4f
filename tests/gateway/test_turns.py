"""Where many requests begin at once, the tokens of live streams go between them.

Counted in turns of the event loop, which looks at its sockets once in each: no clock.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from spotinference.gateway import app, requests, waiting
from spotinference.gateway.turns import CROWD, PATIENCE, SHARE, Turns
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, KEY, bench, chat, stream

BURST = 6


class Tokens:
    """So many pieces in each turn."""

    def __init__(self, each_turn: int = 1) -> None:
        self.poured = each_turn
        self.pours = 0

    def pour(self) -> None:
        self.pours += 1


class Count:
    """Turns of the loop since it was made."""

    def __init__(self) -> None:
        self.turns = 0
        self._handle = asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self.turns += 1
        self._handle = asyncio.get_running_loop().call_soon(self._turn)

    def stop(self) -> None:
        self._handle.cancel()


async def began(turns: Turns, number: int) -> list[tuple[int, int]]:
    """Who began in which turn, in this order, of so many that come at once."""
    count = Count()
    found: list[tuple[int, int]] = []

    async def begin(who: int) -> None:
        await turns.own()
        found.append((count.turns, who))

    await asyncio.gather(*(begin(who) for who in range(number)))
    count.stop()
    return found


async def test_beside_live_streams_one_request_begins_in_a_turn_in_their_order() -> None:
    turns = Turns(Tokens())
    turns.live = 1
    found = await began(turns, SHARE)
    assert [who for _, who in found] == list(range(SHARE))
    assert len({turn for turn, _ in found}) == SHARE


async def test_of_a_crowd_a_part_begins_in_each_turn() -> None:
    turns = Turns(Tokens())
    turns.live = 1
    found = await began(turns, 100 * SHARE)
    each = [sum(turn == at for turn, _ in found) for at in range(found[-1][0] + 1)]
    assert 50 < max(each) <= 100
    assert [who for _, who in found] == list(range(100 * SHARE))


async def test_while_the_loop_is_behind_with_tokens_nobody_begins_for_a_while() -> None:
    turns = Turns(Tokens(CROWD + 1))
    turns.live = 1
    found = await began(turns, 2)
    assert [who for _, who in found] == [0, 1]
    assert found[0][0] >= PATIENCE
    assert found[1][0] >= found[0][0] + PATIENCE
    assert found[1][0] < 3 * PATIENCE


async def test_what_has_come_of_answers_goes_out_before_a_request_begins() -> None:
    tokens = Tokens()
    turns = Turns(tokens)
    turns.live = 1
    await began(turns, 3)
    assert tokens.pours == 3


async def test_without_a_live_stream_nobody_waits() -> None:
    assert len({turn for turn, _ in await began(Turns(Tokens()), 50)}) == 1


async def test_who_leaves_takes_no_turn_and_the_line_ends() -> None:
    turns = Turns(Tokens())
    turns.live = 1
    tasks = [asyncio.ensure_future(turns.own()) for _ in range(4)]
    await asyncio.sleep(0)
    for task in tasks[1:3]:
        task.cancel()
    await asyncio.wait(tasks, timeout=5)
    assert [task.cancelled() for task in tasks] == [False, True, True, False]
    turns.live = 0
    assert len({turn for turn, _ in await began(turns, 3)}) <= 3


async def test_a_burst_of_requests_begins_over_several_turns_while_an_answer_is_streamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All are readable in the same turn; the next looks at the live stream's socket."""
    begun: list[int] = []
    count = Count()
    read_body = requests.read_body

    async def seen(*given: Any) -> bytes:
        begun.append(count.turns)
        return await read_body(*given)

    async with bench(tokens_per_s=50) as b, b.http() as http:
        await b.tier("demo")
        engine = await b.replica()
        live = asyncio.create_task(stream(http, CHAT, chat(max_tokens=2000)))
        await eventually(lambda: b.gateway.context.turns.live == 1, 5)
        monkeypatch.setattr(requests, "read_body", seen)
        with ExitStack() as stack:
            clients = [stack.enter_context(_client(b.url)) for _ in range(BURST)]
            await eventually(lambda: b.gateway.front.count == BURST + 1, 5)
            for client in clients:
                client.sendall(_request())
            await eventually(lambda: len(engine.sim.requests) == BURST + 1, 5)
        live.cancel()
        await asyncio.gather(live, return_exceptions=True)
        await eventually(lambda: b.gateway.context.turns.live == 0, 5)
    count.stop()
    assert len(set(begun)) == BURST


async def test_the_excess_is_refused_before_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(tokens_per_s=50, max_answers=1) as b, b.http() as http:
        await b.tier("demo")
        await b.replica()
        live = asyncio.create_task(stream(http, CHAT, chat(max_tokens=2000)))
        await eventually(lambda: b.gateway.context.turns.live == 1, 5)

        async def never(_: Turns) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(Turns, "own", never)
        async with asyncio.timeout(5), http.post(CHAT, json=chat()) as refused:
            assert refused.status == 503
        live.cancel()
        await asyncio.gather(live, return_exceptions=True)


def _client(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def _request() -> bytes:
    body = json.dumps(chat(max_tokens=1, stream=True)).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def test_those_that_wait_together_do_not_write_together() -> None:
    pauses = [waiting.pause_s(10.0) for _ in range(1000)]
    assert all(10.0 <= pause <= 12.0 for pause in pauses)
    assert max(pauses) - min(pauses) > 1.0


def test_the_table_of_descriptors_does_not_grow_under_load() -> None:
    app._room_for_descriptors(1000)
    size = re.search(r"^FDSize:\s*(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert size is not None
    assert int(size[1]) >= 1000
