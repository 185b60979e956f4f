"""Answers that are not streamed: gathered from a stream where that is exact, so a loss costs little."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from spotinference.api.kinds import POD, Json
from spotinference.devcluster.simengine.faults import Fault, Mode
from tests.support.continuation import SEED, TOOLS
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, COMPLETION, Bench, Engine, bench, chat, completion

HEADER = "x-spotinference-continuation"
LONG: Json = {"stream": False, "max_tokens": 300, "ignore_eos": True}


async def ask(b: Bench, path: str, body: Json) -> tuple[int, str, Json]:
    async with b.http() as http, http.post(path, json=body) as response:
        return response.status, response.headers.get(HEADER, ""), await response.json()


async def asked_directly(engine: Engine, path: str, body: Json) -> Json:
    """What the engine itself says to the request as it is."""
    async with (
        aiohttp.ClientSession(engine.sim.url) as http,
        http.post(path, json=body) as response,
    ):
        answer: Json = await response.json()
        return answer


def content(answer: Json) -> list[tuple[str, Any]]:
    """All fields in their order but id and time."""
    return [(key, value) for key, value in answer.items() if key not in {"id", "created"}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(**LONG)),
        (CHAT, chat(**LONG | {"max_tokens": None, "ignore_eos": False})),
        (CHAT, chat(**LONG, stop=["the"])),
        (COMPLETION, completion(**LONG)),
    ],
    ids=["chat", "no-limit", "stop", "completion"],
)
async def test_a_gathered_answer_is_the_engines_own(path: str, body: Json) -> None:
    async with bench() as b:
        await b.tier("demo")
        engine = await b.replica(eos_mean_tokens=150)
        direct = await asked_directly(engine, path, body)
        status, kind, answer = await ask(b, path, body)
        assert (status, kind) == (200, "token")
        assert content(answer) == content(direct)
        assert list(answer) == list(direct)
        assert engine.sim.requests[-1]["body"]["stream"] is True  # type: ignore[index]


@pytest.mark.parametrize("after", [0, 1, 150, 299, -1])
@pytest.mark.parametrize("mode", ["rst", "fin", "clean_no_done", "error_event"])
@pytest.mark.parametrize("path", [CHAT, COMPLETION])
async def test_a_loss_costs_a_prefill_and_not_the_answer(path: str, mode: Mode, after: int) -> None:
    if after == -1 and mode in {"clean_no_done", "error_event"}:
        mode = "rst"
    body = chat(**LONG) if path == CHAT else completion(**LONG)
    async with bench() as b:
        await b.tier("demo")
        first, second = await b.replica(), await b.replica()
        with b.preferring(first):
            _, _, whole = await ask(b, path, body)
            first.sim.faults.plan = Fault(mode=mode, after_chunks=after, times=1)
            status, _, answer = await ask(b, path, body)
        assert status == 200
        if after == -1:  # only the chunk that was lost names it
            whole["system_fingerprint"] = None
        assert content(answer) == content(whole)
        left = [request["body"]["max_tokens"] for request in second.sim.requests]  # type: ignore[index]
        expected = {-1: [], 0: [300]}.get(after, [300 - after])
        assert left == expected or (after == 299 and left[0] <= 2)


async def test_log_probabilities_of_the_tokens_alone_are_not_lost() -> None:
    body = completion(**LONG, logprobs=0)
    async with bench() as b:
        await b.tier("demo")
        engine = await b.replica()
        direct = await asked_directly(engine, COMPLETION, body)
        status, _, answer = await ask(b, COMPLETION, body)
        assert status == 200
        assert direct["choices"][0]["logprobs"] is not None
        assert content(answer) == content(direct)


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": 20},
        SEED,
        TOOLS,
        {"logprobs": True},
        {"return_token_ids": True},
        {"response_format": {"type": "json_object"}},
    ],
    ids=["short", "seeded", "tools", "logprobs", "ids", "grammar"],
)
async def test_what_a_stream_would_not_tell_exactly_is_asked_for_whole(more: Json) -> None:
    body = chat(**LONG | more)
    async with bench() as b:
        await b.tier("demo")
        engine = await b.replica(tool_parser=True)
        await b.replica(tool_parser=True)
        engine.sim.faults.plan = Fault(mode="refuse", times=1)
        with b.preferring(engine):
            status, kind, answer = await ask(b, CHAT, body)
        assert (status, kind) == (200, "restart")
        assert answer["choices"][0]["finish_reason"]
        assert all(not r["body"]["stream"] for r in engine.sim.requests)  # type: ignore[index]


async def test_a_gathered_answer_waits_for_the_next_replica() -> None:
    body = chat(**LONG)
    async with bench() as b:
        await b.tier("demo")
        lost = await b.replica()
        _, _, whole = await ask(b, CHAT, body)
        lost.sim.faults.plan = Fault(mode="rst_all", after_chunks=100, times=1)
        asking = asyncio.create_task(ask(b, CHAT, body))
        await eventually(lambda: b.parked() == 1, 5)
        await b.lose_node(lost)
        replica = await b.replica()
        status, _, answer = await asking
        assert status == 200
        assert content(answer) == content(whole)
        assert len(replica.sim.requests) == 1


async def test_a_gathered_answer_leaves_no_trace_when_its_client_does() -> None:
    async with bench() as b:
        await b.tier("demo")
        engine = await b.replica(tokens_per_s=50)
        asking = asyncio.create_task(ask(b, CHAT, chat(**LONG)))
        await eventually(lambda: engine.sim.engine.unfinished == 1, 5)
        asking.cancel()
        await eventually(lambda: engine.sim.engine.unfinished == 0, 5)
        b.kube.drop(POD, engine.pod)


async def test_an_answer_beyond_the_bound_is_an_error_and_not_kept() -> None:
    async with bench(max_answer_bytes=20_000) as b:
        await b.tier("demo")
        await b.replica()
        status, _, answer = await ask(b, CHAT, chat(**LONG))
        assert (status, answer["error"]["code"]) == (502, "engine_failed")
