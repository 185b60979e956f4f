"""Endpoints beside generation: they wait, wake and fail by the same rules."""

from __future__ import annotations

import asyncio

import pytest

from spotinference.api.kinds import Json
from spotinference.devcluster.simengine.faults import Fault
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, bench, chat

TOKENIZE = "/tokenize"
EMBEDDINGS = "/v1/embeddings"
TEXT: Json = {"model": "demo", "prompt": "once upon a time"}


async def test_tokenize_wakes_a_tier_and_is_answered_when_it_is_there() -> None:
    async with bench() as b:
        await b.tier("demo")
        async with b.http() as http:
            waiting = asyncio.create_task(http.post(TOKENIZE, json=TEXT))
            await eventually(lambda: b.parked() == 1 and len(b.kube.leases()) == 1, 5)
            await b.replica()
            response = await waiting
            assert response.status == 200
            tokens = (await response.json())["tokens"]
            async with http.post("/detokenize", json={"model": "demo", "tokens": tokens}) as back:
                assert (await back.json())["prompt"] == TEXT["prompt"]


async def test_the_cap_is_a_504_here_too() -> None:
    async with bench() as b:
        await b.tier("demo", wake={"cap": "1s", "budget": "1s"})
        async with b.http() as http, http.post(TOKENIZE, json=TEXT) as response:
            assert response.status == 504
            assert (await response.json())["error"]["code"] == "wake_timeout"


WRONG: list[tuple[str, Json, str]] = [
    (TOKENIZE, {}, "prompt"),
    (TOKENIZE, {"prompt": 7}, "prompt"),
    (TOKENIZE, {"messages": []}, "messages"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": ["a"]}, "tokens"),
    ("/v1/embeddings", {}, "input"),
    ("/v1/embeddings", {"input": []}, "input"),
    ("/v1/rerank", {"query": "x"}, "documents"),
    ("/v1/rerank", {"documents": ["x"]}, "query"),
    ("/v1/score", {"text_1": "x"}, "documents"),
    ("/v1/responses", {}, "input"),
    ("/v1/responses", {"input": "x", "background": True}, "background"),
    ("/v1/responses", {"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
    ("/v1/responses", {"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
]


@pytest.mark.parametrize(("path", "body", "param"), WRONG)
async def test_a_body_that_is_wrong_names_the_field_and_wakes_nobody(
    path: str, body: Json, param: str
) -> None:
    async with bench() as b:
        await b.tier("demo")
        async with b.http() as http, http.post(path, json={"model": "demo"} | body) as response:
            assert response.status == 400
            error = (await response.json())["error"]
            assert (error["code"], error["param"]) == ("invalid_request", param)
        assert b.kube.writes == []


@pytest.mark.parametrize("fault", [Fault(mode="refuse", times=1), Fault(mode="status", times=1)])
async def test_before_the_first_byte_another_replica_is_asked(fault: Fault) -> None:
    async with bench() as b:
        await b.tier("demo")
        first, _ = await b.replica(), await b.replica()
        first.sim.faults.plan = fault
        with b.preferring(first):
            async with b.http() as http, http.post(TOKENIZE, json=TEXT) as response:
                assert response.status == 200


async def test_embeddings_scores_and_ranks_come_from_engines_that_have_them() -> None:
    async with bench() as b:
        await b.tier("demo")
        await b.replica(pooling=True)
        words = ["the sea and the sky", "a red apple"]
        async with b.http() as http:
            async with http.post(EMBEDDINGS, json={"model": "demo", "input": words}) as response:
                assert [len(d["embedding"]) for d in (await response.json())["data"]] == [64, 64]
            asked = {"model": "demo", "query": "an apple", "documents": words, "extra": 1}
            async with http.post("/v1/rerank", json=asked) as response:
                assert [r["index"] for r in (await response.json())["results"]] == [1, 0]
            asked = {"model": "demo", "text_1": words[0], "text_2": words}
            async with http.post("/v1/score", json=asked) as response:
                scores = [d["score"] for d in (await response.json())["data"]]
                assert scores[0] == pytest.approx(1)
                assert scores[1] < 1
                assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (EMBEDDINGS, {"input": "x"}),
        ("/v1/rerank", {"query": "x", "documents": ["y"]}),
        ("/v1/score", {"text_1": "x", "text_2": "y"}),
    ],
)
async def test_what_a_model_cannot_do_is_said_by_the_engine_each_time_anew(
    path: str, body: Json
) -> None:
    async with bench() as b:
        await b.tier("demo")
        engine = await b.replica()
        async with b.http() as http:
            async with http.post(path, json={"model": "demo"} | body) as response:
                assert response.status == 404
                error = (await response.json())["error"]
                assert error["code"] == "endpoint_not_supported"
                assert path in error["message"]
                assert response.headers["x-should-retry"] == "false"
            await b.lose_node(engine)
            await b.replica(pooling=True)
            async with http.post(path, json={"model": "demo"} | body) as response:
                assert response.status == 200
            async with http.post(CHAT, json=chat()) as response:
                assert (await response.json())["error"]["code"] == "endpoint_not_supported"


async def test_a_request_that_replicas_die_of_is_not_to_be_sent_again() -> None:
    async with bench(max_losses=1) as b:
        await b.tier("demo")
        for engine in (await b.replica(), await b.replica()):
            engine.sim.faults.plan = Fault(mode="refuse")
        async with b.http() as http:
            for path, body in (
                (TOKENIZE, TEXT),
                ("/v1/responses", {"model": "demo", "input": "x"}),
            ):
                async with http.post(path, json=body) as response:
                    assert response.status == 502
                    assert (await response.json())["error"]["code"] == "upstream_lost"
                    assert response.headers["x-should-retry"] == "false"
