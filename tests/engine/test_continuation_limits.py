"""What is not continued, held against real engines: an honest end each time, nothing appended.

The list is `LIMITS` in tests/support/continuation.py, shown in docs/reference/continuation.md.
"""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from spotinference.api.kinds import Json
from spotinference.core import continuation, responses
from tests.support.continuation import SEED
from tests.support.engine import EngineClient, running_engine
from tests.support.gateway import CHAT, COMPLETION, Bench, Seen, chat, completion, stream
from tests.support.tiny import models
from tests.support.two_ways import two_ways

pytestmark = pytest.mark.timeout(400)

LONG: Json = {"max_tokens": 40, "ignore_eos": True}
CUT = 20


async def undisturbed(b: Bench, http: aiohttp.ClientSession, path: str, body: Json) -> Seen:
    with b.preferring("first"):
        whole = await stream(http, path, body)
    assert whole.done == 1, whole.raw
    return whole


async def cut(engine: EngineClient, body: Json, **ways: Any) -> tuple[Seen, Json]:
    """What the client saw, and the error that ended it: after a part of the undisturbed answer."""
    path = CHAT if "messages" in body else COMPLETION
    async with two_ways(engine.server, **ways) as (b, first), b.http() as http:
        whole = await undisturbed(b, http, path, body)
        first.after, first.dies = CUT, True
        with b.preferring("first"):
            seen = await stream(http, path, body)
        assert first.cuts == 1
    assert (seen.clean, seen.done, seen.finishes) == (False, 0, [])
    assert 0 < len(seen.text) < len(whole.text)
    assert whole.text.startswith(seen.text)
    assert seen.error is not None
    return seen, seen.error


async def test_a_tier_whose_owner_wants_no_continuation_gets_none(parsing: EngineClient) -> None:
    seen, error = await cut(parsing, chat(**LONG), interruption={"continuation": "off"})
    assert error["code"] == "not_continuable"
    assert seen.headers["x-spotinference-continuation"] == "refused"


async def test_an_answer_does_not_go_on_at_another_revision(parsing: EngineClient) -> None:
    _, error = await cut(parsing, chat(**LONG), model="/cache/weights/def")
    assert error["code"] == "not_continuable"


DIFFERENT = {
    "other numbers": (b'"seed":7', b'"seed":8'),
    "another tokenizer or template": (b"tell me a story", b"Tell Me A Story"),
}


@pytest.mark.parametrize("how", DIFFERENT)
async def test_a_replica_that_says_something_else_is_not_appended_to(
    parsing: EngineClient, how: str
) -> None:
    """The second replica gets another seed, or another prompt: to the gateway it computes anew."""
    body = chat(**LONG | SEED | {"temperature": 2.0})
    _, error = await cut(parsing, body, alter=DIFFERENT[how])
    assert error["code"] == "continuation_diverged"


async def test_a_replica_whose_context_is_too_short_is_an_honest_end(
    thinking: EngineClient,
) -> None:
    weights = models.ensure("thinker")
    with running_engine("vllm", "--max-model-len", "20", weights=weights) as short:
        body = completion("<|user|>Think, then say it.<|end|><|assistant|>", **LONG)
        _, error = await cut(thinking, body, second=short)
    assert error["code"] == "not_continuable"
    assert "maximum context length" in error["message"]


async def test_an_answer_that_is_longer_than_is_kept_is_an_honest_end(
    parsing: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuation, "MAX_TOKENS", CUT // 2)
    _, error = await cut(parsing, chat(**LONG))
    assert error["code"] == "not_continuable"


async def test_a_response_that_is_longer_than_is_kept_is_an_honest_end(
    parsing: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "MAX_RAW_BYTES", 2000)
    body: Json = {"model": "demo", "input": "hi", "stream": True, "max_output_tokens": 40}
    body["ignore_eos"] = True  # else it may end before the cut
    async with two_ways(parsing.server) as (b, first), b.http() as http:
        first.after = CUT
        with b.preferring("first"):
            seen = await stream(http, "/v1/responses", body)
        assert first.cuts == 1
    lines = seen.raw.decode().splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert (events[-1]["type"], events[-1]["code"]) == ("error", "not_continuable")
    assert not seen.clean


async def test_beam_search_is_not_streamed_by_the_engine(parsing: EngineClient) -> None:
    got = await parsing.stream(prompt="once", max_tokens=4, use_beam_search=True, n=2)
    assert got.status == 400
    assert "beam search" in got.body
