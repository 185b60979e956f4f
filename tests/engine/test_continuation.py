"""The continuation matrix on real engines: a gateway between, its connections cut.

One engine stands behind two addresses, so a lost "replica" is a cut connection, and the answer goes
on at the same engine by the other address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest

from spotinference.api.kinds import Json
from tests.support.continuation import KINDS, Kind, heard
from tests.support.engine import EngineClient
from tests.support.eventually import eventually
from tests.support.gateway import Seen, stream
from tests.support.tiny import models
from tests.support.two_ways import REASONING, two_ways

pytestmark = pytest.mark.timeout(400)

CUTS = (1, 12)
"""Events before the cut, the role chunk among them."""
MERGED = 10
"""Tries: a vLLM whose machine is busy puts several tokens into one event, and too few may come."""


def kinds(setup: str) -> pytest.MarkDecorator:
    found = [kind for kind in KINDS if kind.setup == setup]
    return pytest.mark.parametrize("kind", found, ids=lambda kind: kind.name)


def same(seen: Seen, whole: Seen, where: str) -> None:
    assert seen.error is None, f"{where}: {seen.error}"
    assert seen.clean, where
    mine, theirs = heard(seen.chunks), heard(whole.chunks)
    assert mine.keys() == theirs.keys(), where
    for index, choice in theirs.items():
        assert mine[index].same_as(choice), f"{where}:\n{mine[index]}\n{choice}"
    assert (seen.done, len(seen.identities)) == (1, 1), where
    assert seen.usages[-1:] == whole.usages[-1:], where


def asked(kind: Kind, stop: str | None = None) -> Json:
    body = kind.body(stop, real=True)
    if "prompt_embeds" in body:
        body["prompt_embeds"] = models.prompt_embeds()
    return body


async def survives(engine: EngineClient, kind: Kind, cuts: Sequence[int] | None = None) -> Seen:
    """The undisturbed stream; the same is heard after each cut (None: in each of its parts)."""
    tier = REASONING if kind.reasoning else {}
    async with two_ways(engine.server, **tier) as (b, first), b.http() as http:
        path, body = kind.endpoint.value, asked(kind)
        whole = await stream(http, path, body)
        assert whole.status == 200, whole.raw
        assert whole.headers["x-spotinference-continuation"] == kind.expected.value
        if kind.stop:
            text = heard(whole.chunks)[0].text
            body = asked(kind, text[len(text) // 2 :][:9])
            whole = await stream(http, path, body)
        cuts = sorted(places(whole.chunks).values()) if cuts is None else cuts
        for done, cut in enumerate(cuts):
            for _ in range(MERGED):
                await eventually(lambda: "first" in b.routable(), 10)  # ejected for the cuts before
                first.after = cut
                with b.preferring("first"):
                    seen = await stream(http, path, body)
                same(seen, whole, f"cut after {cut}")
                if first.cuts > done:
                    break
            assert first.cuts == done + 1, f"never as many as {cut} events"
        return whole


def places(chunks: Sequence[Json]) -> Mapping[str, int]:
    """A cut within each part of an answer (its first, middle and last event), by the part."""
    parts: dict[str, list[int]] = {}
    for number, chunk in enumerate(chunks, 1):
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta") or choice
            for call in delta.get("tool_calls") or ():
                for field in call.get("function") or ():
                    parts.setdefault(f"{field} of call {call['index']}", []).append(number)
            for field in ("reasoning", "content", "text"):
                if delta.get(field):
                    parts.setdefault(field, []).append(number)
            if choice.get("finish_reason"):  # usage and [DONE] are lost
                parts.setdefault("finish", []).append(number)
    return {
        f"{part}, {where}": numbers[at]
        for part, numbers in parts.items()
        for where, at in (("begun", 0), ("within", len(numbers) // 2), ("whole", -1))
    }


@kinds("parsing")
async def test_a_cut_answer_is_heard_as_if_undisturbed(parsing: EngineClient, kind: Kind) -> None:
    await survives(parsing, kind, CUTS)


@kinds("thinking")
async def test_a_cut_within_reasoning_or_a_tool_call_is_not_heard(
    thinking: EngineClient, kind: Kind
) -> None:
    whole = await survives(thinking, kind)
    parts = {where.partition(",")[0] for where in places(whole.chunks)}
    answer = heard(whole.chunks)[0]
    if kind.reasoning and kind.more.get("include_reasoning") is not False:
        assert "reasoning" in parts
        assert len(answer.reasoning) > 20
    if "tools" in kind.more and "seed" not in kind.more:
        assert {f"arguments of call {index}" for index in answer.calls} <= parts
        assert len(answer.calls) == (2 if "two" in kind.name else 1)
        for call in answer.calls.values():
            assert len(json.loads(call["arguments"])["text"]) > 20


@kinds("seeing")
async def test_a_cut_answer_about_a_picture_is_heard_as_if_undisturbed(
    seeing: EngineClient, kind: Kind
) -> None:
    await survives(seeing, kind, (1, 2, 5, 12))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("more", [{}, {"stop": ["a"]}], ids=["plain", "stop"])
async def test_a_gathered_answer_is_byte_for_byte_the_engines_own(
    parsing: EngineClient, path: str, more: Json
) -> None:
    """But for id and time; also when its replica is lost meanwhile."""
    prompt: Json = {"prompt": "once upon a time"}
    if "chat" in path:
        prompt = {"messages": [{"role": "user", "content": "tell me a story"}]}
    body = {"model": "demo", "temperature": 0, "max_tokens": 40, **prompt, **more}
    async with two_ways(parsing.server, gather_tokens=1) as (b, first), b.http() as http:
        _, direct = await parsing.post(path, body)
        for cut in (None, 9):
            first.after = cut
            with b.preferring("first"):
                async with http.post(path, json=body) as response:
                    assert response.headers["x-spotinference-continuation"] == "token"
                    raw = await response.read()
            answer = json.loads(raw)
            answer |= {"id": direct["id"], "created": direct["created"]}
            assert json.dumps(answer) == json.dumps(direct)
        assert first.cuts == 1 or "stop" in more
