"""What goes through the gateway comes out as the engine has it, field by field.

Each request is made twice, at the engine and at the gateway before it. Ids and times differ by
nature; streams may be cut into chunks elsewhere, so their pieces are put together first.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from spotinference.api.kinds import POD
from tests.support.continuation import TOOLS as ROOM
from tests.support.continuation import picture
from tests.support.engine import MODEL, EngineClient, Json
from tests.support.eventually import eventually
from tests.support.gateway import Bench, bench
from tests.support.tiny import models
from tests.support.two_ways import REASONING

pytestmark = pytest.mark.timeout(400)

_BY_NATURE = {"id", "item_id", "created", "created_at", "call_id", "system_fingerprint", "metrics"}
SCHEMA: Json = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
NAMED = {"type": "function", "function": {"name": "f"}}
FLAT = [{"type": "function", "name": "f", "parameters": SCHEMA}]
CHAT: Json = {"messages": [{"role": "user", "content": "Tell me about spot machines."}]}
PARTS: Json = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Tell"}, {"type": "text", "text": "me"}],
        },
    ]
}
GREEDY: Json = {"temperature": 0, "max_tokens": 12}
C, T, R = "/v1/chat/completions", "/v1/completions", "/v1/responses"

REQUESTS: dict[str, tuple[str, Json]] = {
    "plain": (C, CHAT | GREEDY),
    "usage": (C, CHAT | GREEDY | {"stream_options": {"include_usage": True}}),
    "logprobs": (C, CHAT | GREEDY | {"logprobs": True, "top_logprobs": 2}),
    "completion logprobs": (T, {"prompt": "A spot machine"} | GREEDY | {"logprobs": 1}),
    "choices": (C, CHAT | {"n": 3, "seed": 7, "temperature": 1.5, "max_tokens": 8}),
    "prompts": (T, {"prompt": ["A spot", "A machine"]} | GREEDY),
    "parts": (C, PARTS | GREEDY),
    "stop": (C, CHAT | GREEDY | {"stop": ["is"], "include_stop_str_in_output": True}),
    "token ids": (C, CHAT | GREEDY | {"return_token_ids": True}),
    "schema": (
        C,
        CHAT
        | {"temperature": 0, "max_tokens": 40}
        | {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": SCHEMA},
            }
        },
    ),
    "unknown fields": (C, CHAT | GREEDY | {"a_field_of_next_year": {"deep": [1, None]}}),
    "response": (R, {"input": "hello", "temperature": 0, "max_output_tokens": 9}),
    "response messages": (
        R,
        {
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
            "instructions": "Be brief.",
            "temperature": 0,
            "max_output_tokens": 9,
            "metadata": {"a": "b"},
        },
    ),
    "tokens": ("/tokenize", CHAT | {"return_token_strs": True}),
}


@asynccontextmanager
async def before(
    client: EngineClient, **spec: Any
) -> AsyncIterator[tuple[Bench, aiohttp.ClientSession]]:
    """A gateway whose only replica is this engine."""
    async with bench() as b:
        await b.tier(MODEL, **spec)
        port = int(client.server.url.rsplit(":", 1)[1])
        b.kube.put(POD, b.pod("engine-0", MODEL, port))
        await eventually(lambda: b.routable(MODEL) == ["engine-0"], 5)
        async with b.http() as http:
            yield b, http


def scrubbed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: scrubbed(v) for k, v in value.items() if k not in _BY_NATURE}
    return [scrubbed(item) for item in value] if isinstance(value, list) else value


def whole(raw: str) -> Json:
    """A stream put together: text by place, everything else as often as it came."""
    texts: dict[str, str] = {}
    lists: dict[str, list[Any]] = {}
    others: list[Any] = []
    for line in raw.splitlines():
        if line.startswith("data: ") and line != "data: [DONE]":
            _add(json.loads(line[6:]), texts, lists, others)
    return {"texts": texts, "lists": lists, "others": others, "done": "data: [DONE]" in raw}


def _add(
    chunk: Json, texts: dict[str, str], lists: dict[str, list[Any]], others: list[Any]
) -> None:
    if isinstance(chunk.get("delta"), str):
        texts[chunk["type"]] = texts.get(chunk["type"], "") + chunk["delta"]
        return
    if not chunk.get("choices"):
        others.append(scrubbed({k: v for k, v in chunk.items() if k != "sequence_number"}))
        return
    for choice in chunk["choices"]:
        index = choice["index"]
        delta = choice.get("delta") or {"text": choice.get("text")}
        for key, value in delta.items():
            if isinstance(value, str):
                texts[f"{index} {key}"] = texts.get(f"{index} {key}", "") + value
        for call in delta.get("tool_calls") or ():
            for key, value in call["function"].items():
                texts[f"{index} {key}"] = texts.get(f"{index} {key}", "") + value
        logprobs = choice.get("logprobs") or {}
        for key in ("content", "tokens", "token_logprobs"):
            lists.setdefault(f"{index} {key}", []).extend(scrubbed(logprobs.get(key) or []))
        lists.setdefault(f"{index} ids", []).extend(choice.get("token_ids") or [])
        ends = {k: v for k, v in choice.items() if k.endswith("_reason") and v is not None}
        if ends:  # by place: which of several choices ends first is chance
            lists.setdefault(f"{index} ends", []).append(ends)


CALLING: Json = {"temperature": 0, "max_tokens": 60, "tools": TOOLS}
TOOL_REQUESTS: dict[str, tuple[str, Json]] = {
    "named": (C, CHAT | CALLING | {"tool_choice": NAMED}),
    "required": (C, CHAT | CALLING | {"tool_choice": "required"}),
    "auto": (C, CHAT | CALLING),
    "response": (
        R,
        {"input": "hello", "temperature": 0, "max_output_tokens": 60, "tools": FLAT}
        | {"tool_choice": {"type": "function", "name": "f"}},
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_an_answer_passes_untouched_whole_and_streamed(
    engine: EngineClient, name: str
) -> None:
    await passes(engine, *REQUESTS[name])


@pytest.mark.parametrize("name", TOOL_REQUESTS)
async def test_tool_calls_pass_untouched_whole_and_streamed(
    parsing: EngineClient, name: str
) -> None:
    await passes(parsing, *TOOL_REQUESTS[name])


def says(prompt: str) -> Json:
    return {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 120}


THOUGHT: dict[str, tuple[str, Json]] = {
    "reasoning": (C, says("Think, then say it.")),
    "reasoning, seeded": (C, says("Think, then say it.") | {"temperature": 1, "seed": 7}),
    "reasoning left out": (C, says("Think, then say it.") | {"include_reasoning": False}),
    "reasoning, logprobs": (C, says("Think, then say it.") | {"logprobs": True}),
    "reasoning, token ids": (C, says("Think, then say it.") | {"return_token_ids": True}),
    "a call": (C, says("Take the lamp.") | ROOM),
    "two calls": (C, says("Look, then take.") | ROOM),
    "response": (R, {"input": "Think, then say it.", "temperature": 0, "max_output_tokens": 120}),
}


@pytest.mark.parametrize("name", THOUGHT)
async def test_reasoning_and_calls_pass_untouched_whole_and_streamed(
    thinking: EngineClient, name: str
) -> None:
    await passes(thinking, *THOUGHT[name], **REASONING)


@pytest.mark.parametrize("more", [GREEDY, {"temperature": 1, "seed": 7}], ids=["greedy", "seeded"])
async def test_embedded_prompts_pass_untouched(thinking: EngineClient, more: Json) -> None:
    await passes(thinking, T, {"prompt_embeds": models.prompt_embeds(), "max_tokens": 20} | more)


async def test_pictures_pass_untouched(seeing: EngineClient) -> None:
    said: set[str] = set()
    for parts in ([picture(200, 9, 9)], [picture(9, 9, 200)], []):
        content = [*parts, {"type": "text", "text": "What is it?"}]
        body: Json = {"messages": [{"role": "user", "content": content}]} | GREEDY
        await passes(seeing, C, body)
        answer = await seeing.ask(**body)
        said.add(answer["choices"][0]["message"]["content"])
    assert len(said) == 3


async def passes(client: EngineClient, path: str, body: Json, **spec: Any) -> None:
    body = {"model": MODEL} | body
    async with before(client, **spec) as (_, http):
        if "stream_options" not in body:
            status, direct = await client.post(path, body)
            async with http.post(path, json=body) as response:
                assert (response.status, status) == (200, 200), (direct, await response.text())
                assert scrubbed(await response.json()) == scrubbed(direct)
        if path == "/tokenize":
            return
        async with http.post(path, json=body | {"stream": True}) as response:
            passed = await response.text()
        async with client.open_at(path, body | {"stream": True}) as response:
            assert whole(passed) == whole(await response.text())


REFUSED: dict[str, tuple[str, Json, int, str, str | None]] = {
    "sampling": (C, CHAT | {"temperature": 3}, 400, "engine_refused", "temperature"),
    "validation": (
        C,
        CHAT | {"presence_penalty": "many"},
        400,
        "engine_refused",
        "presence_penalty",
    ),
    "context, chat": (
        C,
        {"messages": [{"role": "user", "content": "word " * 5000}]},
        400,
        "context_length_exceeded",
        "messages",
    ),
    "context, tokens": (
        T,
        {"prompt": [20] * 2100, "max_tokens": 5},
        400,
        "context_length_exceeded",
        "prompt",
    ),
    "context, response": (
        R,
        {"input": "word " * 5000},
        400,
        "context_length_exceeded",
        "input",
    ),
    "vocabulary": (T, {"prompt": [10**6]}, 400, "engine_refused", None),
    "embeddings": ("/v1/embeddings", {"input": "x"}, 404, "endpoint_not_supported", "model"),
    "rerank": (
        "/v1/rerank",
        {"query": "x", "documents": ["y"]},
        404,
        "endpoint_not_supported",
        "model",
    ),
    "score": ("/v1/score", {"text_1": "x", "text_2": "y"}, 404, "endpoint_not_supported", "model"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refusal_has_the_gateways_shape_and_code(engine: EngineClient, name: str) -> None:
    path, body, status, code, param = REFUSED[name]
    asked = {"model": MODEL} | body
    async with before(engine) as (_, http), http.post(path, json=asked) as response:
        answer = await response.json()
        assert response.status == status, answer
        error = answer["error"]
        assert (error["code"], error["param"]) == (code, param)
        assert error["type"] == "invalid_request_error"
        assert error["message"]
        assert "validation error" not in error["message"]
        assert "(parameter=" not in error["message"]
        assert response.headers["x-should-retry"] == "false"
        assert response.headers["x-request-id"]


async def test_a_model_that_pools_has_pooling_apis_and_no_others(pooling: EngineClient) -> None:
    words = ["a spot machine", "another"]
    async with before(pooling) as (_, http):
        for path, body in (
            ("/v1/embeddings", {"input": words}),
            ("/v1/embeddings", {"input": words, "encoding_format": "base64"}),
            ("/v1/rerank", {"query": words[0], "documents": words, "top_n": 1}),
            ("/v1/score", {"text_1": words[0], "text_2": words}),
        ):
            asked = {"model": MODEL} | body
            status, direct = await pooling.post(path, asked)
            async with http.post(path, json=asked) as response:
                assert (response.status, status) == (200, 200), direct
                assert scrubbed(await response.json()) == scrubbed(direct)
        generation: list[tuple[str, Json]] = [(C, CHAT), (T, {"prompt": "x"}), (R, {"input": "x"})]
        for path, ask in generation:
            async with http.post(path, json={"model": MODEL, "stream": True} | ask) as response:
                assert response.status == 404
                assert (await response.json())["error"]["code"] == "endpoint_not_supported"
        long: Json = {"model": MODEL, "input": "word " * 5000}
        async with http.post("/v1/embeddings", json=long) as response:
            error = (await response.json())["error"]
            assert (error["code"], error["param"]) == ("context_length_exceeded", "input")


@pytest.mark.parametrize(
    "more", [{"temperature": 0}, {"temperature": 1.2}], ids=["greedy", "seeded"]
)
async def test_a_response_whose_replica_goes_is_replayed_exactly(
    engine: EngineClient, more: Json
) -> None:
    """The engine plays both replicas: what counts is that it repeats itself."""
    asked: Json = {"model": MODEL, "input": "hello", "max_output_tokens": 120, "ignore_eos": True}
    asked |= more
    async with before(engine) as (b, http):
        raw = b""
        async with http.post(R, json=asked | {"stream": True}) as response:
            async for data in response.content.iter_any():
                raw += data
                if raw.count(b"output_text.delta") > 20 and "engine-0" in b.routable(MODEL):
                    port = int(engine.server.url.rsplit(":", 1)[1])
                    b.kube.put(POD, b.pod("engine-1", MODEL, port))
                    b.kube.drop(POD, "engine-0")
        metrics = b.gateway.context.metrics.render().decode()
    assert 'continuations_total{kind="replay",outcome="continued"} 1.0' in metrics
    events = [json.loads(line[6:]) for line in raw.decode().splitlines() if line[:6] == "data: "]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    final = events[-1]["response"]
    assert text == final["output"][0]["content"][0]["text"]
    assert final["usage"]["output_tokens"] == 120
    assert {e["response"]["id"] for e in events if "response" in e} == {final["id"]}
