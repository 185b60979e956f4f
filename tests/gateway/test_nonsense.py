"""Odd fields of clients and of engines: nobody's next answer is touched by them."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from spotinference.core import responses
from spotinference.core.stream import events
from tests.gateway.raw_table import post
from tests.gateway.test_hostile_http import address
from tests.support import raw_http
from tests.support.gateway import CHAT, COMPLETION, bench, chat, completion, stream
from tests.support.scripted import DONE, Call, join, scripted, token

USAGES = [7, "x", [1], {"prompt_tokens": "x"}, {"prompt_tokens": 1, "prompt_tokens_details": [1]}]


@pytest.mark.parametrize("usage", USAGES, ids=str)
async def test_a_count_that_is_none_is_no_second_answer(usage: Any) -> None:
    """The next request on the connection would take it for its own."""

    async def odd(call: Call) -> None:
        await call.begin()
        await call.send(token(0))
        await call.send(token(1, finish="stop"))
        last = {"id": "chatcmpl-1", "created": 1, "model": "demo", "choices": [], "usage": usage}
        await call.send(b"data: " + orjson.dumps(last) + b"\n\n")
        await call.send(DONE)
        await call.end()

    async with bench() as b, scripted(odd) as port:
        await b.tier("demo")
        await join(b, port)
        asked = post(content=orjson.dumps(chat()))
        raw = await raw_http.talk(address(b), asked + post("Connection: close", key=None))
        answers = raw_http.parse(raw)
        assert [answer.status for answer in answers] == [200, 401]
        assert answers[0].body.endswith(DONE)
        assert b.gateway.context.turns.live == 0


@pytest.mark.parametrize("prompt", [[], ["a", "b"], [[]], {}], ids=str)
async def test_a_chat_with_a_field_of_completions_is_a_chat(prompt: Any) -> None:
    async with bench() as b, b.http() as http:
        await b.tier("demo")
        await b.replica()
        for temperature in 0, 1:
            body = chat(temperature=temperature) | {"prompt": prompt}
            seen = await asyncio.wait_for(stream(http, CHAT, body), 10)
            assert (seen.status, seen.done, seen.clean) == (200, 1, True), seen.raw[-300:]


@pytest.mark.parametrize("prompt", [[[]], [None], [True], [1.5], [{}]], ids=str)
async def test_a_prompt_that_is_none_is_the_engines_to_refuse(prompt: Any) -> None:
    async with bench() as b, b.http() as http:
        await b.tier("demo")
        await b.replica()
        seen = await asyncio.wait_for(stream(http, COMPLETION, completion(prompt=prompt)), 10)
        assert seen.status in {200, 400}, seen.raw


async def test_an_event_of_several_lines_is_one_event() -> None:
    """SSE lets data be cut into lines, which a reader joins with line breaks."""

    async def lines(call: Call) -> None:
        await call.begin()
        both = token(0) + token(1, finish="stop")
        await call.send(both.replace(b',"object"', b',\ndata: "object"') + DONE)
        await call.end()

    async with bench() as b, scripted(lines) as port, b.http() as http:
        await b.tier("demo")
        await join(b, port)
        seen = await stream(http, CHAT, chat())
        assert (seen.status, seen.done, seen.clean) == (200, 1, True)
        read = [event.data for event in events(seen.raw) if event.data not in (None, b"[DONE]")]
        assert [orjson.loads(data)["choices"][0]["delta"]["content"] for data in read] == ["x", "x"]


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
async def test_a_mistake_of_ours_after_an_answer_is_no_second_answer(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        monkeypatch.setattr(b.gateway.context.usage, "over", broken)
        asked = post(content=orjson.dumps(chat(max_tokens=2)), version=version)
        raw = await raw_http.talk(address(b), asked)
        assert raw.count(b"HTTP/1.") == 1
        assert raw.count(DONE) == 1


def test_an_event_of_several_lines_is_one_event_of_a_response_too() -> None:
    data = b'{"type":"response.created",\n"response":{"id":"r"},\n\n"sequence_number":0}'
    (event,) = events(responses.Answer().feed(data))
    assert orjson.loads(event.data or b"") == orjson.loads(data)
