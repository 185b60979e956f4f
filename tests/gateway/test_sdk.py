"""The real OpenAI SDK as the client, unmodified, with its defaults."""

from __future__ import annotations

import asyncio

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from spotinference.devcluster.simengine.faults import Fault
from tests.support.eventually import eventually
from tests.support.gateway import KEY, Bench, bench

ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "tell me a story"}]


async def streamed(client: AsyncOpenAI, seed: int | None = None) -> tuple[str, str | None, int]:
    """Text, finish reason and completion tokens of one streamed answer."""
    text, finish, tokens = "", None, 0
    answer = await client.chat.completions.create(
        model="demo",
        messages=ASKED,
        temperature=0 if seed is None else 0.8,
        seed=seed,
        max_tokens=50,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in answer:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
    return text, finish, tokens


@pytest.mark.parametrize("seed", [None, 11], ids=["greedy", "seeded"])
async def test_the_async_client_sees_one_unbroken_answer(seed: int | None) -> None:
    async with bench() as b, b.openai() as client:
        await b.tier("demo")
        first, _ = await b.replica(), await b.replica()
        whole = await streamed(client, seed)
        assert whole[1:] == ("length", 50)
        for after in (1, 20, 49):
            first.sim.faults.plan = Fault(mode="rst", after_chunks=after, times=1)
            with b.preferring(first):
                assert await streamed(client, seed) == whole


def blocking(url: str) -> tuple[str, str]:
    """The blocking client: streamed and whole text."""
    with OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        text = ""
        for chunk in client.completions.create(
            model="demo", prompt="once", temperature=0, max_tokens=40, stream=True
        ):
            text += chunk.choices[0].text
        whole = client.completions.create(model="demo", prompt="once", temperature=0, max_tokens=40)
        return text, whole.choices[0].text


async def test_the_blocking_client_gets_the_same_streamed_and_whole() -> None:
    async with bench() as b:
        await b.tier("demo")
        first, _ = await b.replica(), await b.replica()
        text, whole = await asyncio.to_thread(blocking, b.url)
        assert text == whole
        first.sim.faults.plan = Fault(mode="fin", after_chunks=13, times=1)
        with b.preferring(first):
            again, _ = await asyncio.to_thread(blocking, b.url)
        assert again == text


async def test_a_whole_answer_survives_the_loss_of_its_replica() -> None:
    async with bench(tokens_per_s=100) as b, b.openai(max_retries=0) as client:
        await b.tier("demo")
        first, _ = await b.replica(), await b.replica()
        with b.preferring(first):
            asked = asyncio.create_task(
                client.chat.completions.create(model="demo", messages=ASKED, max_tokens=60)
            )
            await eventually(lambda: len(first.sim.requests) == 1, 5)
            await b.lose_node(first)
        answer = await asked
        assert answer.usage is not None
        assert 0 < answer.usage.completion_tokens <= 60


@pytest.mark.fault(49)
async def test_the_sdk_waits_through_a_wake_and_reads_heartbeats() -> None:
    quick = {"fail_fast_s": 0.05, "heartbeat_s": 0.05, "empty_chunk_s": 0.1}
    async with bench(**quick) as b, b.openai() as client:
        await b.tier("demo")
        asked = asyncio.create_task(streamed(client))
        await eventually(lambda: b.parked() == 1, 5)
        await asyncio.sleep(0.3)  # several heartbeats and empty chunks pass
        await b.replica()
        text, finish, tokens = await asked
        assert (finish, tokens) == ("length", 50)
        assert (await streamed(client))[0] == text


async def test_errors_arrive_as_the_sdks_own_exceptions() -> None:
    async with bench() as b:
        await b.tier("demo")
        await failing(b)


async def failing(b: Bench) -> None:
    async with b.openai(key="wrong") as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            await client.models.list()
        assert refused.value.code == "invalid_api_key"
    async with b.openai() as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.completions.create(model="nope", prompt="x")
        assert unknown.value.code == "model_not_found"
        assert [model.id async for model in client.models.list()] == ["demo"]


async def test_a_cut_that_cannot_be_continued_is_an_exception_not_an_end() -> None:
    async with bench() as b, b.openai() as client:
        await b.tier("demo", interruption={"continuation": "off"})
        engine = await b.replica()
        engine.sim.faults.plan = Fault(mode="rst", after_chunks=5, times=1)
        with pytest.raises(openai.APIError):
            await streamed(client)
