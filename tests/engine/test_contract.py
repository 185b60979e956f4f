"""The contract both engines keep: what the gateway and the operator build on."""

from __future__ import annotations

import contextlib
import json

import pytest

from spotinference.clients.vllm import parse as parse_metrics
from tests.engine.conftest import QUEUE_LIMIT
from tests.support.engine import ALIAS, MAX_MODEL_LEN, MODEL, EngineClient, Json, events
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(400)

CHAT: list[Json] = [{"role": "user", "content": "Tell me about spot machines."}]
LENGTH = 48
HOT = 2.0
"""The highest temperature allowed: even a model that knows its text by heart rolls dice."""


async def test_health_version_and_models_name_every_alias(engine: EngineClient) -> None:
    assert (await engine.get("/health"))[0] == 200
    assert json.loads((await engine.get("/version"))[1])["version"].startswith("0.3")
    models = json.loads((await engine.get("/v1/models"))[1])
    assert models["object"] == "list"
    assert [card["id"] for card in models["data"]] == [MODEL, ALIAS]
    assert {card["max_model_len"] for card in models["data"]} == {MAX_MODEL_LEN}


async def test_a_chat_stream_starts_with_a_role_and_ends_with_done(engine: EngineClient) -> None:
    got = await engine.stream(
        messages=CHAT,
        max_tokens=LENGTH,
        temperature=0,
        ignore_eos=True,
        return_token_ids=True,
        stream_options={"include_usage": True},
    )
    first, *middle, last = got.chunks
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["prompt_token_ids"]
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in middle)
    assert got.finish_reasons == ["length"]
    assert len(got.token_ids) == LENGTH
    prompt = len(got.prompt_token_ids)
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == prompt
    assert last["usage"]["completion_tokens"] == LENGTH
    assert last["usage"]["total_tokens"] == prompt + LENGTH
    assert got.done
    assert len({(c["id"], c["created"], c["model"]) for c in got.chunks}) == 1


async def test_a_completion_stream_has_the_prompt_ids_on_its_first_chunk(
    engine: EngineClient,
) -> None:
    got = await engine.stream(
        prompt="A spot machine is", max_tokens=8, temperature=0, return_token_ids=True
    )
    assert got.chunks[0]["object"] == "text_completion"
    assert got.chunks[0]["choices"][0]["prompt_token_ids"] == got.prompt_token_ids
    assert all(not c.get("prompt_token_ids") for c in got.choices[1:])
    assert got.done
    assert all("usage" not in chunk for chunk in got.chunks)


@pytest.mark.parametrize("body", [{"messages": CHAT}, {"prompt": "A spot machine is"}])
async def test_streamed_and_whole_answers_are_the_same(engine: EngineClient, body: Json) -> None:
    ask = {**body, "max_tokens": LENGTH, "temperature": 0, "return_token_ids": True}
    whole = (await engine.ask(**ask))["choices"][0]
    streamed = await engine.stream(**ask)
    assert streamed.text == (whole["message"]["content"] if "message" in whole else whole["text"])
    assert streamed.token_ids == whole["token_ids"]
    assert streamed.finish_reasons == [whole["finish_reason"]]


async def test_without_return_token_ids_there_are_none(engine: EngineClient) -> None:
    got = await engine.stream(messages=CHAT, max_tokens=4, temperature=0)
    assert got.token_ids == []
    assert not got.chunks[0].get("prompt_token_ids")


async def test_continuous_usage_counts_up_with_each_chunk(engine: EngineClient) -> None:
    got = await engine.stream(
        messages=CHAT,
        max_tokens=6,
        temperature=0,
        ignore_eos=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )
    counts = [chunk["usage"]["completion_tokens"] for chunk in got.chunks]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == 6


@pytest.mark.parametrize("cut", [1, 5, 10, 20, 35])
async def test_greedy_continues_exactly_from_any_token(engine: EngineClient, cut: int) -> None:
    ask: Json = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}
    whole = await engine.stream(messages=CHAT, max_tokens=LENGTH, **ask)
    prompt = whole.prompt_token_ids + whole.token_ids[:cut]
    rest = await engine.stream(prompt=prompt, max_tokens=LENGTH - cut, **ask)
    assert rest.prompt_token_ids == prompt
    assert rest.token_ids == whole.token_ids[cut:]
    assert whole.text.endswith(rest.text)


async def test_a_seeded_request_replays_but_does_not_continue(engine: EngineClient) -> None:
    ask: Json = {"temperature": HOT, "seed": 7, "ignore_eos": True, "return_token_ids": True}
    once = await engine.stream(messages=CHAT, max_tokens=24, **ask)
    again = await engine.stream(messages=CHAT, max_tokens=24, **ask)
    assert again.token_ids == once.token_ids
    prompt = once.prompt_token_ids + once.token_ids[:12]
    rest = await engine.stream(prompt=prompt, max_tokens=12, **ask)
    assert rest.token_ids != once.token_ids[12:]


async def test_unseeded_sampling_differs_from_time_to_time(engine: EngineClient) -> None:
    ask: Json = {"temperature": HOT, "max_tokens": 16, "ignore_eos": True, "return_token_ids": True}
    once = await engine.stream(messages=CHAT, **ask)
    again = await engine.stream(messages=CHAT, **ask)
    assert again.token_ids != once.token_ids


async def test_a_stop_string_ends_the_text_before_itself(engine: EngineClient) -> None:
    ask: Json = {"messages": CHAT, "max_tokens": LENGTH, "temperature": 0}
    text = (await engine.stream(**ask)).text
    stop = text.split()[6]
    got = await engine.stream(**ask, stop=[stop])
    whole = (await engine.ask(**ask, stop=stop))["choices"][0]
    assert got.text == text[: text.index(stop)] == whole["message"]["content"]
    assert got.finish_reasons == ["stop"]
    assert got.choices[-1]["stop_reason"] == stop == whole["stop_reason"]


async def test_a_stop_token_ends_the_answer_and_is_counted(engine: EngineClient) -> None:
    ask: Json = {"messages": CHAT, "max_tokens": 24, "temperature": 0, "return_token_ids": True}
    ids = (await engine.stream(**ask)).token_ids
    stop = ids[9]
    got = await engine.stream(**ask, stop_token_ids=[stop])
    assert got.token_ids == ids[: ids.index(stop) + 1]
    assert got.choices[-1]["stop_reason"] == stop


async def test_max_completion_tokens_wins_over_max_tokens(engine: EngineClient) -> None:
    answer = await engine.ask(
        messages=CHAT, max_tokens=9, max_completion_tokens=3, temperature=0, ignore_eos=True
    )
    assert answer["usage"]["completion_tokens"] == 3


async def test_n_makes_several_choices_when_sampling(engine: EngineClient) -> None:
    got = await engine.stream(messages=CHAT, n=2, max_tokens=4, temperature=HOT, ignore_eos=True)
    assert {choice["index"] for choice in got.choices} == {0, 1}
    assert got.finish_reasons == ["length", "length"]


async def test_tokenize_counts_what_generation_will_see(engine: EngineClient) -> None:
    _, counted = await engine.post("/tokenize", {"model": MODEL, "messages": CHAT})
    answer = await engine.ask(messages=CHAT, max_tokens=1, temperature=0, return_token_ids=True)
    assert counted["tokens"] == answer["prompt_token_ids"]
    assert counted["count"] == answer["usage"]["prompt_tokens"]
    assert counted["max_model_len"] == MAX_MODEL_LEN


WRONG: list[tuple[str, Json, int, str | None, str]] = [
    ("/v1/chat/completions", {"model": "nope", "messages": CHAT}, 404, "model", "does not exist"),
    ("/v1/chat/completions", {"model": MODEL}, 400, "body.messages", "Field required"),
    ("/v1/chat/completions", {"model": MODEL, "messages": []}, 400, None, "empty conversation"),
    (
        "/v1/chat/completions",
        {"model": MODEL, "messages": CHAT, "temperature": 0, "n": 2},
        400,
        None,
        "n must be 1 when using greedy sampling",
    ),
    (
        "/v1/completions",
        {"model": MODEL, "prompt": "a", "max_tokens": 99999},
        400,
        "max_tokens",
        "max_tokens=99999 cannot be greater than max_model_len=2048",
    ),
    (
        "/v1/completions",
        {"model": MODEL, "prompt": [20] * 2100, "max_tokens": 100},
        400,
        "input_tokens",
        "your prompt contains 2100 input tokens, which exceeds this limit",
    ),
    (
        "/v1/completions",
        {"model": MODEL, "prompt": [20] * 2048},
        400,
        "max_tokens",
        "max_tokens must be at least 1, got 0",
    ),
    (
        "/v1/completions",
        {"model": MODEL, "prompt": "a", "temperature": 2.5},
        400,
        "temperature",
        "temperature must be in [0, 2], got 2.5",
    ),
    ("/v1/completions", {"model": MODEL, "prompt": "a", "max_tokens": 0}, 400, "max_tokens", "at"),
    ("/v1/completions", {"model": MODEL, "prompt": [10**6]}, 400, None, "out of vocabulary"),
    ("/v1/completions", {"model": MODEL, "prompt": []}, 400, None, "at least one prompt"),
    (
        "/v1/completions",
        {"model": MODEL, "prompt": "a", "temperature": -1},
        400,
        "temperature",
        "temperature must be non-negative",
    ),
    (
        "/v1/completions",
        {"model": MODEL, "prompt": "a", "stream_options": {"include_usage": True}},
        400,
        "stream_options",
        "Stream options can only be defined when `stream=True`",
    ),
    (
        "/v1/chat/completions",
        {
            "model": MODEL,
            "messages": CHAT,
            "tool_choice": "auto",
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        },
        400,
        None,
        "--tool-call-parser",
    ),
    (
        "/v1/chat/completions",
        {
            "model": MODEL,
            "messages": CHAT,
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        },
        400,
        None,
        'tool_choice=function "f" requires --tool-call-parser',
    ),
    ("/v1/responses", {"model": MODEL}, 400, "body.input", "Field required"),
    ("/v1/responses", {"model": "nope", "input": "x"}, 404, "model", "does not exist"),
    (
        "/v1/responses",
        {"model": MODEL, "input": "x", "temperature": 3},
        400,
        "temperature",
        "temperature must be in [0, 2], got 3.0",
    ),
    (
        "/v1/responses",
        {"model": MODEL, "input": "x", "max_output_tokens": 99999},
        400,
        "max_output_tokens",
        "max_output_tokens=99999 cannot be greater than max_model_len=2048",
    ),
    ("/detokenize", {"model": MODEL}, 400, "body.tokens", "Field required"),
]


@pytest.mark.parametrize(("path", "body", "status", "param", "words"), WRONG)
async def test_a_wrong_request_is_refused_in_one_shape(
    engine: EngineClient, path: str, body: Json, status: int, param: str | None, words: str
) -> None:
    got, answer = await engine.post(path, body)
    assert got == status, answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["code"] == status
    assert answer["error"]["param"] == param
    assert words in answer["error"]["message"]


async def test_max_tokens_is_cut_to_the_room_that_is_left(engine: EngineClient) -> None:
    answer = await engine.ask(prompt=[20] * 2044, max_tokens=100, temperature=0, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_unknown_paths_and_methods_have_no_openai_shape(engine: EngineClient) -> None:
    assert await engine.get("/nowhere") == (404, '{"detail":"Not Found"}')
    assert await engine.get("/v1/completions") == (405, '{"detail":"Method Not Allowed"}')


async def test_metrics_have_the_series_that_scaling_reads(engine: EngineClient) -> None:
    before = await engine.metric("vllm:generation_tokens_total", model_name=MODEL)
    await engine.ask(messages=CHAT, max_tokens=5, temperature=0, ignore_eos=True)
    for name in (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prompt_tokens_total",
        "vllm:prompt_tokens_cached_total",
        "vllm:num_preemptions_total",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:request_success_total",
        "vllm:admission_rejections_total",
        "vllm:time_to_first_token_seconds_count",
        "vllm:inter_token_latency_seconds_sum",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:request_queue_time_seconds_sum",
    ):
        assert await engine.metric(name, model_name=MODEL) >= 0

    async def counted() -> bool:
        now = await engine.metric("vllm:generation_tokens_total", model_name=MODEL)
        return now == before + 5

    await eventually(counted, 15, "generated tokens counted")


async def test_the_latencies_that_an_objective_needs_are_understood(engine: EngineClient) -> None:
    await engine.ask(messages=CHAT, max_tokens=5, temperature=0, ignore_eos=True)

    async def told() -> bool:
        status, page = await engine.get("/metrics")
        load = parse_metrics(page.encode())
        assert status == 200
        seen = [0.0 if h is None else h.counts[-1] for h in (load.ttft, load.itl)]
        return seen[0] >= 1 and seen[1] >= 4 and load.kv_use is not None

    await eventually(told, 15, "a first token and four gaps counted")


async def _running(engine: EngineClient) -> float:
    return await engine.metric("vllm:num_requests_running")


async def test_a_client_that_leaves_frees_its_slot(engine: EngineClient) -> None:
    async with engine.open(
        messages=CHAT, max_tokens=1900, temperature=0, ignore_eos=True
    ) as response:
        async for _ in events(response):
            break

        async def occupied() -> bool:
            return await _running(engine) == 1

        await eventually(occupied, 20, "slot taken")

    async def freed() -> bool:
        return await _running(engine) == 0

    # 1,900 tokens take the real engine longer than this.
    await eventually(freed, 5, "slot freed")


async def test_a_full_queue_answers_503_and_counts_it(engine: EngineClient) -> None:
    ask: Json = {"messages": CHAT, "max_tokens": 1900, "temperature": 0, "ignore_eos": True}
    rejected = await engine.metric("vllm:admission_rejections_total")
    async with contextlib.AsyncExitStack() as streams:
        for _ in range(QUEUE_LIMIT):
            response = await streams.enter_async_context(engine.open(**ask))
            assert response.status == 200
        status, answer = await engine.post("/v1/chat/completions", {"model": MODEL, **ask})
        assert status == 503
        assert "cannot accept new requests" in answer["error"]["message"]
        assert answer["error"]["code"] == 503
        assert await engine.metric("vllm:admission_rejections_total") == rejected + 1

    async def idle() -> bool:
        return await _running(engine) == 0

    await eventually(idle, 20, "all slots freed")
