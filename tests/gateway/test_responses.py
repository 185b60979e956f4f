"""The Responses API: streams that outlive their replica, and are honest when they cannot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from spotinference.api.kinds import POD, Json
from spotinference.core import responses
from spotinference.devcluster.simengine.faults import Fault
from tests.support.eventually import eventually
from tests.support.gateway import bench

PATH = "/v1/responses"
TOOL: Json = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {"where": {"type": "string"}}},
}


def ask(**more: Any) -> Json:
    body: Json = {"model": "demo", "input": "tell me a story", "temperature": 0}
    return body | {"max_output_tokens": 40} | more


@dataclass(slots=True)
class Streamed:
    status: int
    raw: bytes
    clean: bool

    @property
    def events(self) -> list[Json]:
        found = []
        for block in self.raw.decode().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
            if "data" in lines:
                event = json.loads(lines["data"])
                assert lines["event"] == event["type"]
                found.append(event)
        return found

    @property
    def text(self) -> str:
        return "".join(e["delta"] for e in self.events if e["type"].endswith(".delta"))

    @property
    def final(self) -> Json:
        last: Json = self.events[-1]
        assert last["type"] == "response.completed"
        response: Json = last["response"]
        return response


async def stream(
    http: aiohttp.ClientSession, body: Json, raw: list[bytes] | None = None
) -> Streamed:
    got: list[bytes] = raw if raw is not None else []
    async with http.post(PATH, json=body | {"stream": True}) as response:
        clean = True
        try:
            async for data in response.content.iter_any():
                got.append(data)  # noqa: PERF401 - what came before a cut counts
        except aiohttp.ClientError:
            clean = False
        return Streamed(response.status, b"".join(got), clean)


def whole(seen: Streamed) -> None:
    """One answer: numbers without a gap, one id each for response and item, the same text twice."""
    assert seen.clean
    assert [e["sequence_number"] for e in seen.events] == list(range(len(seen.events)))
    assert len({e["response"]["id"] for e in seen.events if "response" in e}) == 1
    assert len({e["response"]["created_at"] for e in seen.events if "response" in e}) == 1
    items = {e["item_id"] for e in seen.events if "item_id" in e}
    items |= {e["item"]["id"] for e in seen.events if "item" in e}
    items |= {item["id"] for item in seen.final["output"]}
    assert len(items) == 1


SAMPLED: Sequence[Json] = (
    {},
    {"temperature": 0.8, "seed": 5},
    {"input": [{"role": "user", "content": "hi"}], "instructions": "be brief"},
    {"tools": [TOOL], "tool_choice": {"type": "function", "name": "look"}},
)


@pytest.mark.parametrize("after", [0, 1, 7, 39], ids=lambda n: f"after-{n}")
@pytest.mark.parametrize("more", SAMPLED, ids=["greedy", "seeded", "messages", "tool"])
async def test_a_response_goes_on_where_it_was_cut(more: Json, after: int) -> None:
    async with bench() as b:
        await b.tier("demo")
        first, _ = await b.replica(tool_parser=True), await b.replica(tool_parser=True)
        async with b.http() as http:
            undisturbed = await stream(http, ask(**more))
            whole(undisturbed)
            first.sim.faults.plan = Fault(mode="rst", after_chunks=after, times=1)
            with b.preferring(first):
                seen = await stream(http, ask(**more))
        whole(seen)
        assert seen.text == undisturbed.text
        assert seen.final["usage"] == undisturbed.final["usage"]
        assert [e["type"] for e in seen.events if "delta" not in e] == [
            e["type"] for e in undisturbed.events if "delta" not in e
        ]


async def test_an_unseeded_response_is_given_a_seed_and_goes_on_too() -> None:
    async with bench() as b:
        await b.tier("demo")
        first, second = await b.replica(), await b.replica()
        first.sim.faults.plan = Fault(mode="fin", after_chunks=9, times=1)
        async with b.http() as http:
            with b.preferring(first):
                seen = await stream(http, ask(temperature=1.0, ignore_eos=True))
        whole(seen)
        seeds = [engine.sim.requests[-1]["body"]["seed"] for engine in (first, second)]  # type: ignore[index]
        assert seeds[0] == seeds[1]
        assert seen.final["usage"]["output_tokens"] == 40


async def test_a_second_loss_during_the_replay_changes_nothing() -> None:
    async with bench() as b:
        await b.tier("demo")
        engines = [await b.replica() for _ in range(3)]
        async with b.http() as http:
            undisturbed = await stream(http, ask())
            engines[0].sim.faults.plan = Fault(mode="rst", after_chunks=20, times=1)
            engines[1].sim.faults.plan = Fault(mode="rst", after_chunks=11, times=1)
            engines[2].sim.faults.plan = Fault(mode="rst", after_chunks=30, times=1)
            with b.preferring(engines[0]):
                seen = await stream(http, ask())
        whole(seen)
        assert seen.text == undisturbed.text


async def test_a_replica_that_does_not_repeat_the_answer_ends_it_with_an_error_event() -> None:
    async with bench() as b:
        await b.tier("demo")
        first = await b.replica()
        await b.replica(eos_mean_tokens=2)
        first.sim.faults.plan = Fault(mode="rst", after_chunks=30, times=1)
        async with b.http() as http:
            with b.preferring(first):
                seen = await stream(http, ask())
        refused(seen, "continuation_diverged")


@pytest.mark.parametrize(
    ("spec", "body"),
    [
        ({"interruption": {"continuation": "off"}}, {}),
        ({}, {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}),
        ({}, {"metadata": {"a": "too long to keep"}}),
    ],
    ids=["switched off", "tools of the engine", "too long"],
)
async def test_what_cannot_be_continued_ends_with_an_error_event(
    spec: Json, body: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "metadata" in body:
        monkeypatch.setattr(responses, "MAX_RAW_BYTES", 10)
    async with bench() as b:
        await b.tier("demo", **spec)
        first, _ = await b.replica(tool_parser=True), await b.replica(tool_parser=True)
        first.sim.faults.plan = Fault(mode="rst", after_chunks=1, times=1)
        async with b.http() as http:
            with b.preferring(first):
                seen = await stream(http, ask(**body))
        refused(seen, "not_continuable")


def refused(seen: Streamed, code: str) -> None:
    last = seen.events[-1]
    assert last["type"] == "error"
    assert last["code"] == last["error"]["code"] == code
    assert last["error"]["status"] == 502
    assert last["sequence_number"] == len(seen.events) - 1
    assert not seen.clean


async def test_the_first_byte_is_not_promised_before_it_is_there() -> None:
    async with bench() as b:
        await b.tier("demo", interruption={"continuation": "off"})
        first, _ = await b.replica(), await b.replica()
        async with b.http() as http:
            for mode in ("refuse", "status", "content_type"):
                first.sim.faults.plan = Fault(mode=mode, times=1)
                with b.preferring(first):
                    whole(await stream(http, ask()))
                first.sim.faults.plan = Fault(mode=mode, times=1)
                with b.preferring(first):
                    async with http.post(PATH, json=ask()) as response:
                        assert (await response.json())["status"] == "incomplete"


@pytest.mark.parametrize("cut", [None, 12])
async def test_a_waiting_response_is_kept_alive_by_events_of_its_own(cut: int | None) -> None:
    async with bench(fail_fast_s=0.05, heartbeat_s=0.05, empty_chunk_s=0.05) as b:
        await b.tier("demo")
        async with b.http() as http:
            raw: list[bytes] = []
            running = asyncio.create_task(stream(http, ask(), raw))
            await eventually(lambda: b"".join(raw).count(b"response.in_progress") >= 4, 5)
            first = await b.start_engine()
            if cut is not None:
                first.faults.plan = Fault(mode="rst_all", after_chunks=cut, times=1)
            b.kube.put(POD, b.pod("demo-0", "demo", first.port))
            if cut is not None:
                await eventually(lambda: b"output_text" in b"".join(raw), 5)
                b.kube.drop(POD, "demo-0")
                before = len(raw)
                await eventually(lambda: len(raw) > before + 3, 5)
                await b.replica()
            seen = await running
            await first.stop()
            undisturbed = await stream(http, ask()) if cut is not None else seen
        whole(seen)
        assert seen.text == undisturbed.text
        assert [e["type"] for e in seen.events].count("response.created") == 1
        assert b"choices" not in seen.raw
        assert b": waking eta_seconds=" in seen.raw


async def test_the_cap_is_an_error_event_of_this_api() -> None:
    async with bench(fail_fast_s=0.05) as b:
        await b.tier("demo", wake={"cap": "1s", "budget": "1s"})
        async with b.http() as http:
            seen = await stream(http, ask())
        assert [e["type"] for e in seen.events] == ["error"]
        assert seen.events[0]["error"]["code"] == "wake_timeout"
        assert seen.events[0]["error"]["status"] == 504
        assert not seen.clean
