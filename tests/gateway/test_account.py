"""What an answer took, as the usage record will say it; and the class that a client may see."""

from __future__ import annotations

import asyncio

import pytest

from spotinference.api.kinds import Json
from spotinference.core.account import Account
from spotinference.devcluster.simengine.faults import Fault
from spotinference.gateway.exchange import Exchange
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, COMPLETION, Bench, bench, chat, completion, stream

HEADER = "x-spotinference-continuation"


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> list[Account]:
    """Of every exchange that ended."""
    ended: list[Account] = []
    settle = Exchange._settle_account

    def settled(exchange: Exchange) -> None:
        settle(exchange)
        ended.append(exchange.account)

    monkeypatch.setattr(Exchange, "_settle_account", settled)
    return ended


async def ask(b: Bench, path: str, body: Json, after: int | None = None) -> None:
    first = next(iter(b.engines.values()))
    if after is not None:
        first.sim.faults.plan = Fault(mode="rst", after_chunks=after, times=1)
    async with b.http() as http:
        with b.preferring(first):
            await stream(http, path, body)


@pytest.mark.parametrize("more", [{}, {"stream_options": {"include_usage": True}}])
async def test_tokens_are_counted_whether_or_not_the_client_asked(
    accounts: list[Account], more: Json
) -> None:
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        await ask(b, CHAT, chat(max_tokens=20, ignore_eos=True, **more))
        await ask(b, CHAT, chat(max_tokens=20, ignore_eos=True, stream=False))
    streamed, whole = accounts
    assert (streamed.prompt_tokens, streamed.completion_tokens) == (whole.prompt_tokens, 20)
    assert whole.completion_tokens == 20
    assert streamed.first_token_at is not None
    assert (streamed.attempts, streamed.continuations, streamed.replayed_tokens) == (1, 0, 0)


async def test_a_continued_answer_is_counted_once_and_the_repetition_apart(
    accounts: list[Account],
) -> None:
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        await b.replica()
        body = chat(max_tokens=20, ignore_eos=True)
        await ask(b, CHAT, body)
        await ask(b, CHAT, body, after=8)
        await ask(b, CHAT, body | {"temperature": 1, "seed": 2}, after=8)
    whole, token, replay = accounts
    for account in (token, replay):
        assert account.prompt_tokens == whole.prompt_tokens
        assert account.completion_tokens == 20
        assert (account.attempts, account.continuations) == (2, 1)
    assert whole.prompt_tokens is not None
    assert token.replayed_prompt_tokens + token.replayed_tokens == whole.prompt_tokens + 8
    assert (replay.replayed_tokens, replay.replayed_prompt_tokens) == (8, whole.prompt_tokens)


async def test_an_answer_that_its_client_left_is_counted_as_far_as_it_came(
    accounts: list[Account],
) -> None:
    async with bench(tokens_per_s=500) as b:
        await b.tier("demo")
        await b.replica()
        arrived: list[bytes] = []
        async with b.http() as http:
            reading = asyncio.create_task(stream(http, CHAT, chat(), arrived=arrived))
            await eventually(lambda: b"".join(arrived).count(b'"content"') >= 5, 5)
            reading.cancel()
            await eventually(lambda: len(accounts) == 1, 5)
    assert accounts[0].prompt_tokens
    assert 4 <= (accounts[0].completion_tokens or 0) < 60


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        (CHAT, chat(), "token"),
        (CHAT, chat(temperature=1), "replay"),
        (CHAT, chat(temperature=1, stream=False), "restart"),
        (COMPLETION, completion(["a", "b"]), "replay"),
    ],
)
async def test_the_class_stands_in_a_header_and_a_metric(path: str, body: Json, kind: str) -> None:
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        async with b.http() as http, http.post(path, json=body) as response:
            assert response.headers[HEADER] == kind
            await response.read()
        metric = f'spotinference_gateway_continuation_classes_total{{kind="{kind}"}} 1.0'
        assert metric in b.gateway.context.metrics.render().decode()
