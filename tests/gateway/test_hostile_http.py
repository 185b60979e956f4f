"""The raw HTTP table straight at the gateway, whole and in pieces, and the bounds on its parts."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from spotinference.gateway.config import GatewaySettings
from tests.gateway.raw_table import CASES, LENGTH, body, head, post
from tests.support import raw_http
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, Bench, Engine, bench, chat, stream

DEADLINES = {"head_timeout_s": 8.0, "body_timeout_s": 8.0, "idle_timeout_s": 8.0}
"""Beyond what a test takes: whoever waits for one of them is found out."""
DOCS = Path(__file__).parents[2] / "docs" / "gateway.md"
MAX_BYTEWISE = 500
"""Longer payloads go in two pieces only."""

Cut = Callable[[bytes], Sequence[int]]


def whole(_: bytes) -> Sequence[int]:
    return ()


def head_first(data: bytes) -> Sequence[int]:
    """The head in one packet, what follows in the next: the parser's error comes mid-request."""
    end = data.find(b"\r\n\r\n") + 4
    return (end,) if end > 4 else ()


def bytewise(data: bytes) -> Sequence[int]:
    return range(1, len(data)) if len(data) <= MAX_BYTEWISE else head_first(data)


def seen_by(engine: Engine) -> tuple[str, ...]:
    """The prompts that reached it."""
    bodies = [request["body"] for request in engine.sim.requests]
    return tuple(asked["messages"][0]["content"] for asked in bodies if isinstance(asked, dict))


def address(b: Bench) -> raw_http.Address:
    host, _, port = b.url.removeprefix("http://").partition(":")
    return host, int(port)


async def differences(front: raw_http.Address, engine: Engine, cut: Cut) -> dict[str, str]:
    """What is not as the table says."""
    found = {}
    for case in CASES:
        engine.sim.requests.clear()
        answers = await raw_http.exchange(
            front, case.payload, sentinel=case.sentinel, pieces=cut(case.payload)
        )
        seen = seen_by(engine)
        if (answers.statuses, answers.closed, seen) != (case.statuses, case.closed, case.seen):
            found[case.name] = f"{answers}, seen {seen}"
    return found


@pytest.mark.fault(57, 58)
@pytest.mark.parametrize("cut", [whole, head_first, bytewise])
async def test_the_raw_table_holds_however_the_bytes_arrive(cut: Cut) -> None:
    async with bench(**DEADLINES) as b:
        await b.tier("demo")
        assert await differences(address(b), await b.replica(), cut) == {}


def test_the_table_names_each_case_once() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


@pytest.mark.fault(57)
async def test_what_the_parser_refuses_is_answered_in_our_shape_and_counted() -> None:
    async with bench() as b:
        raw = await raw_http.talk(address(b), head("Content-Length: -1"))
        (answer,) = raw_http.parse(raw)
        error = json.loads(answer.body)["error"]
        assert error["code"] == "malformed_http"
        assert b"\r\nx-request-id: " in answer.head
        assert b"-1" not in answer.body
        assert (
            'code="malformed_http",tier="other"} 1.0' in b.gateway.context.metrics.render().decode()
        )


@pytest.mark.fault(57)
async def test_a_body_that_breaks_mid_request_ends_it_at_once_and_wakes_nobody() -> None:
    async with bench(**DEADLINES) as b:
        await b.tier("demo")
        text = head("Transfer-Encoding: chunked") + b"zz\r\n"
        raw = await asyncio.wait_for(
            raw_http.talk(address(b), text, head_first(text)), DEADLINES["body_timeout_s"] / 2
        )
        assert [answer.status for answer in raw_http.parse(raw)] == [400]
        assert b.kube.writes == []


async def test_a_client_that_asks_before_it_sends_its_body_is_told_to_go_on() -> None:
    async with bench(**DEADLINES) as b:
        await b.tier("demo")
        await b.replica()
        reader, writer = await asyncio.open_connection(*address(b))
        writer.write(head("Expect: 100-continue", "Connection: close", f"Content-Length: {LENGTH}"))
        interim = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body())
        rest = await asyncio.wait_for(reader.read(), 30)
        assert [answer.status for answer in raw_http.parse(rest)] == [200]
        writer.close()


@pytest.mark.fault(58, 63)
async def test_a_client_without_a_key_is_not_asked_for_its_body() -> None:
    async with bench(**DEADLINES) as b:
        text = head("Expect: 100-continue", "Content-Length: 1000000", key=None)
        raw = await raw_http.talk(address(b), text)
        assert [answer.status for answer in raw_http.parse(raw)] == [401]


JSON_BOMBS = {
    "a-million-deep": b'{"model":"demo","messages":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
    "a-number-of-a-million-digits": body()[:-1] + b"9" * 1_000_000 + b"}",
    "invalid-utf-8": b'{"model":"demo","messages":[{"role":"user","content":"\xff\xfe"}]}',
    "lone-surrogate": b'{"model":"demo","messages":[{"role":"user","content":"\\ud800"}]}',
    "bom": b"\xef\xbb\xbf" + body(),
    "utf-16": body().decode().encode("utf-16"),
    "nan": b'{"model":"demo","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
    "infinity": b'{"model":"demo","messages":[{"role":"user","content":"x"}],"temperature":1e999}',
    "nul": body() + b"\x00",
    "two-objects": body() + body(),
    "a-comment": b"/* */" + body(),
}


@pytest.mark.fault(58, 68)
@pytest.mark.parametrize("content", JSON_BOMBS.values(), ids=JSON_BOMBS.keys())
async def test_json_that_is_none_is_400_and_wakes_nobody(content: bytes) -> None:
    async with bench(**DEADLINES) as b:
        await b.tier("demo")
        answers = await raw_http.exchange(address(b), post(content=content))
        assert answers == raw_http.Answers((400,), closed=False)
        assert b.kube.writes == []
        assert value_of_bugs(b) == 0


def value_of_bugs(b: Bench) -> float:
    return float(b.gateway.context.metrics.bugs._value.get())


@pytest.mark.fault(58)
async def test_a_field_given_twice_is_one_field_for_the_engine_too() -> None:
    async with bench(**DEADLINES) as b:
        await b.tier("demo")
        engine = await b.replica()
        twice = b'{"model":"other",' + body()[1:]
        assert (await raw_http.exchange(address(b), post(content=twice))).statuses == (200,)
        sent = engine.sim.requests[-1]["body"]
        assert isinstance(sent, dict)
        assert sent["model"] == "demo"


@pytest.mark.fault(58)
async def test_a_body_of_100_mib_is_refused_before_any_of_it_is_sent() -> None:
    async with bench(**DEADLINES) as b:
        await b.tier("demo")
        raw = await raw_http.talk(address(b), head(f"Content-Length: {100 * 1024 * 1024}"))
        assert [answer.status for answer in raw_http.parse(raw)] == [413]
        assert b.kube.writes == []


@pytest.mark.fault(59)
async def test_an_idle_connection_is_closed_after_the_idle_timeout() -> None:
    async with bench(idle_timeout_s=0.2) as b:
        await b.tier("demo")
        await b.replica()
        raw = await asyncio.wait_for(raw_http.talk(address(b), post()), 30)
        assert [answer.status for answer in raw_http.parse(raw)] == [200]


@pytest.mark.fault(59)
@pytest.mark.parametrize("sent", [b"", b"POST", head("A: b")[:-2]], ids=["none", "line", "head"])
async def test_a_head_that_does_not_come_is_given_up_at_its_deadline(sent: bytes) -> None:
    async with bench(head_timeout_s=0.2) as b:
        assert await asyncio.wait_for(raw_http.talk(address(b), sent), 30) == b""


@pytest.mark.fault(59)
async def test_a_head_that_comes_byte_by_byte_gets_no_more_time_for_it() -> None:
    async with bench(head_timeout_s=0.3) as b:
        reader, writer = await asyncio.open_connection(*address(b))

        async def dribble() -> None:
            writer.write(b"GET / HTTP/1.1\r\nA: ")
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.02)

        dribbling = asyncio.create_task(dribble())
        try:
            assert await asyncio.wait_for(_until_closed(reader), 30) == b""
        finally:
            dribbling.cancel()
            writer.transport.abort()


async def _until_closed(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


@pytest.mark.fault(59)
async def test_a_body_that_dribbles_is_408_at_its_deadline() -> None:
    async with bench(body_timeout_s=0.3) as b:
        await b.tier("demo")
        reader, writer = await asyncio.open_connection(*address(b))
        writer.write(head("Content-Length: 100000"))

        async def dribble() -> None:
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.02)

        dribbling = asyncio.create_task(dribble())
        try:
            line = await asyncio.wait_for(reader.readline(), 30)
            assert line.startswith(b"HTTP/1.1 408 ")
        finally:
            dribbling.cancel()
            writer.transport.abort()
        assert b.kube.writes == []


@pytest.mark.fault(59)
async def test_a_half_closed_client_is_a_gone_client() -> None:
    async with bench(**DEADLINES) as b:
        await b.tier("demo")
        _, writer = await asyncio.open_connection(*address(b))
        writer.write(post())
        await eventually(lambda: b.parked() == 1, 5)
        writer.write_eof()
        await eventually(lambda: b.parked() == 0, 5, "the request is given up")
        writer.close()


@pytest.mark.fault(59)
async def test_a_flood_of_connections_is_turned_away_while_a_stream_goes_on() -> None:
    async with bench(max_connections=20, tokens_per_s=100) as b:
        await b.tier("demo")
        await b.replica()
        async with b.http() as http:
            arrived: list[bytes] = []
            live = asyncio.create_task(
                stream(http, CHAT, chat(max_tokens=60, ignore_eos=True), arrived=arrived)
            )
            await eventually(lambda: len(arrived) > 2, 5)
            held = [await asyncio.open_connection(*address(b)) for _ in range(19)]
            turned_away = await asyncio.gather(
                *(raw_http.talk(address(b), post()) for _ in range(200))
            )
            assert set(turned_away) == {b""}
            seen = await live
            assert seen.done == 1
            assert seen.clean
            for _, writer in held:
                writer.close()
            await eventually(lambda: _open_connections(b) <= 1, 5)
            assert (await raw_http.exchange(address(b), post())).statuses == (200,)


def _open_connections(b: Bench) -> int:
    return len(b.gateway.front.connections)


@pytest.mark.fault(59)
def test_the_docs_name_the_limits_with_their_defaults() -> None:
    settings = GatewaySettings()
    shown = re.findall(r"^\| `(\w+)` \| (\d+) \|", DOCS.read_text(), re.MULTILINE)
    assert {"head_timeout_s", "max_body_bytes", "idle_timeout_s"} <= {name for name, _ in shown}
    for name, value in shown:
        assert getattr(settings, name) == float(value), name


PIPELINED = 100
"""Three times what aiohttp queues; their bodies fill more than one read of the loop."""


@pytest.mark.fault(57)
async def test_all_of_many_pipelined_requests_are_answered_in_their_order() -> None:
    async with bench(**DEADLINES) as b:
        await b.tier("demo")
        engine = await b.replica()
        reader, writer = await asyncio.open_connection(*address(b))
        for number in range(PIPELINED):
            message = {"role": "user", "content": f"{number} {'x' * 3000}"}
            asked = {"model": "demo", "max_tokens": 1, "messages": [message]}
            writer.write(post(content=json.dumps(asked).encode()))
        for _ in range(PIPELINED):
            await _one_answer(reader)
        writer.close()
        seen = [int(prompt.partition(" ")[0]) for prompt in seen_by(engine)]
        assert seen == list(range(PIPELINED))
        await eventually(lambda: _open_connections(b) == 0, 5)


UPGRADE = ("Connection: Upgrade", "Upgrade: websocket")


@pytest.mark.fault(57)
@pytest.mark.parametrize(
    "upgrade",
    [head(*UPGRADE, method="GET", target="/healthz"), post(*UPGRADE)],
    ids=["get", "post"],
)
async def test_what_follows_a_declined_upgrade_is_answered_too(upgrade: bytes) -> None:
    async with bench(**DEADLINES) as b:
        await b.tier("demo")
        await b.replica()
        reader, writer = await asyncio.open_connection(*address(b))
        for _ in range(2):
            writer.write(upgrade + head(method="GET", target="/healthz"))
            await _one_answer(reader)
            assert await _one_answer(reader) == b"ok\n"
        writer.close()


async def _one_answer(reader: asyncio.StreamReader) -> bytes:
    """The body of a 200."""
    top = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert top.startswith(b"HTTP/1.1 200 "), top
    length = re.search(rb"(?i)content-length: (\d+)", top)
    assert length is not None
    return await reader.readexactly(int(length[1]))
