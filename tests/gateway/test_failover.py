"""A stream that loses its replica goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from spotinference.api import names
from spotinference.api.kinds import POD, Json
from spotinference.core.delivered import MAX_RAW_BYTES
from spotinference.devcluster.simengine.faults import Fault
from tests.support.engine_process import engine_process
from tests.support.eventually import eventually
from tests.support.gateway import (
    CHAT,
    COMPLETION,
    Bench,
    Engine,
    Seen,
    bench,
    chat,
    completion,
    stream,
)

WITH_USAGE: Json = {"stream_options": {"include_usage": True}}
GREEDY: Json = dict(WITH_USAGE)
SEEDED: Json = {"temperature": 0.9, "seed": 7, **WITH_USAGE}
LOSSES = ["rst", "fin", "fin_mid_line", "clean_no_done", "done_no_finish", "error_event", "rst_all"]


def same(continued: Seen, undisturbed: Seen) -> None:
    """What the client sees is the undisturbed answer, under one identity."""
    assert continued.error is None, continued.error
    assert continued.clean
    assert continued.status == undisturbed.status == 200
    assert continued.text == undisturbed.text
    assert continued.finishes == undisturbed.finishes
    assert len(continued.finishes) == 1
    assert continued.roles == undisturbed.roles
    assert continued.done == undisturbed.done == 1
    assert continued.events[-1] == b"[DONE]"
    assert continued.usages == undisturbed.usages
    assert len(continued.identities) == 1
    assert b'token_ids":[' not in continued.raw


async def undisturbed(b: Bench, path: str, body: Json) -> Seen:
    async with b.http() as http:
        return await stream(http, path, body)


async def cut(b: Bench, path: str, body: Json, after: int, mode: Any = "rst") -> Seen:
    """The same request, its first replica failing after so many chunks."""
    first = next(engine for engine in b.engines.values() if engine.pod in b.routable())
    first.sim.faults.plan = Fault(mode=mode, after_chunks=after, times=1)
    async with b.http() as http:
        with b.preferring(first):
            return await stream(http, path, body)


@pytest.mark.fault(37, 62)
@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("path", [CHAT, COMPLETION], ids=["chat", "completion"])
async def test_a_stream_cut_after_any_token_is_byte_identical(path: str, params: Json) -> None:
    body = chat(**params) if path == CHAT else completion(**params)
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        await b.replica()
        whole = await undisturbed(b, path, body)
        assert len(whole.text) > 50
        for after in [0, 1, 2, 3, 5, 8, 13, 21, 34, 47, 58, 59]:
            same(await cut(b, path, body, after), whole)


@pytest.mark.fault(37)
@pytest.mark.parametrize("mode", LOSSES)
@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_a_stream_survives_every_kind_of_loss(mode: str, params: Json) -> None:
    body = chat(**params)
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        await b.replica()
        whole = await undisturbed(b, CHAT, body)
        same(await cut(b, CHAT, body, 17, mode), whole)


async def test_an_unseeded_stream_loses_and_repeats_nothing() -> None:
    """A seed injected on arrival makes it replayable; the engine's log shows which."""
    body = chat(temperature=1.0, ignore_eos=True, **WITH_USAGE)
    async with bench() as b:
        await b.tier("demo")
        first, second = await b.replica(), await b.replica()
        seen = await cut(b, CHAT, body, 20)
        asked = [engine.sim.requests[-1]["body"] for engine in (first, second)]
        assert asked[0]["seed"] == asked[1]["seed"]  # type: ignore[index]
        whole = await undisturbed(b, CHAT, body | {"seed": asked[0]["seed"]})  # type: ignore[index]
        same(seen, whole)


@pytest.mark.fault(37, 38)
@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("path", [CHAT, COMPLETION], ids=["chat", "completion"])
async def test_without_another_replica_the_stream_is_parked_and_goes_on(
    path: str, params: Json
) -> None:
    body = chat(**params) if path == CHAT else completion(**params)
    async with bench(heartbeat_s=0.05) as b:
        await b.tier("demo")
        lost = await b.replica()
        whole = await undisturbed(b, path, body)
        lost.sim.faults.plan = Fault(mode="rst_all", after_chunks=23, times=1)
        async with b.http() as http:
            running = asyncio.create_task(stream(http, path, body))
            await eventually(lambda: b.parked() == 1, 5)
            await b.lose_node(lost)
            await eventually(lambda: len(b.kube.leases()) == 1, 5, "demand is written")
            await b.replica()
            seen = await running
        same(seen, whole)
        assert any(b"eta_seconds=" in comment for comment in seen.comments)
        await eventually(lambda: not b.kube.leases(), 5, "demand is withdrawn")
        assert [verb for verb, _ in b.kube.writes] == ["apply", "delete"]


@pytest.mark.fault(62)
@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_one_answer_survives_three_losses_one_of_them_during_the_replay(
    params: Json,
) -> None:
    body = chat(**params)
    async with bench() as b:
        await b.tier("demo")
        engines = [await b.replica() for _ in range(4)]
        whole = await undisturbed(b, CHAT, body)
        for engine, after in zip(engines, (30, 5, 12), strict=False):
            engine.sim.faults.plan = Fault(mode="rst", after_chunks=after, times=1)
        async with b.http() as http:
            with b.preferring(engines[0]):
                seen = await stream(http, CHAT, body)
        same(seen, whole)


@pytest.mark.fault(62)
async def test_a_loss_after_the_finish_reason_is_only_completed() -> None:
    async with bench() as b:
        await b.tier("demo")
        first, second = await b.replica(), await b.replica()
        for path, body in ((CHAT, chat(**GREEDY)), (COMPLETION, completion(**GREEDY))):
            whole = await undisturbed(b, path, body)
            asked = len(first.sim.requests) + len(second.sim.requests)
            same(await cut(b, path, body, -1, "fin"), whole)
            assert len(first.sim.requests) + len(second.sim.requests) == asked + 1


async def test_a_stop_string_that_straddles_the_cut_is_found_in_time() -> None:
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        await b.replica()
        words = (await undisturbed(b, CHAT, chat())).text.split(" ")
        stop = " ".join(words[20:23])
        body = chat(stop=[stop], **WITH_USAGE)
        whole = await undisturbed(b, CHAT, body)
        assert whole.finishes == ["stop"]
        chunk_count = len(whole.chunks)
        for after in range(5, chunk_count):
            same(await cut(b, CHAT, body, after), whole)


@pytest.mark.parametrize(
    "more",
    [
        {"presence_penalty": 0.7},
        {"frequency_penalty": 0.7},
        {"repetition_penalty": 1.3},
        {"logit_bias": {"300": 1.0}},
        {"min_tokens": 30},
        {"ignore_eos": True},
        {"max_tokens": None, "max_completion_tokens": 40},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True, "top_logprobs": 2},
    ],
    ids=lambda more: next(reversed(more)),
)
async def test_every_parameter_is_continued_by_a_way_that_is_exact(more: Json) -> None:
    body = chat(**{**WITH_USAGE, **more})
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        await b.replica()
        whole = await undisturbed(b, CHAT, body)
        last = len(whole.chunks) - 4
        for after in (1, last // 2, last):
            same(await cut(b, CHAT, body, after), whole)


async def test_without_max_tokens_the_answer_ends_where_the_context_ends() -> None:
    body = chat(max_tokens=None, **WITH_USAGE)
    async with bench() as b:
        await b.tier("demo")
        await b.replica(max_model_len=150, eos_mean_tokens=0)
        await b.replica(max_model_len=150, eos_mean_tokens=0)
        whole = await undisturbed(b, CHAT, body)
        assert whole.finishes == ["length"]
        same(await cut(b, CHAT, body, 40), whole)


async def test_the_client_sees_token_ids_only_when_it_asked() -> None:
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        await b.replica()
        asked = await cut(b, CHAT, chat(return_token_ids=True), 10)
        ids = [
            i for chunk in asked.chunks for c in chunk["choices"] for i in c.get("token_ids") or ()
        ]
        assert len(ids) == 60
        assert asked.chunks[0]["prompt_token_ids"]
        hidden = await cut(b, CHAT, chat(), 10)
        assert b'token_ids":[' not in hidden.raw
        assert hidden.usages == []


async def test_a_replica_that_leaves_the_cluster_silently_is_left_at_once() -> None:
    """Its connections look alive for ever; the pod's removal is what tells."""
    body = chat(**GREEDY)
    async with bench() as b:
        await b.tier("demo")
        first, _ = await b.replica(), await b.replica()
        whole = await undisturbed(b, CHAT, body)
        first.sim.faults.plan = Fault(mode="hang_stream", after_chunks=9, times=1)
        arrived: list[bytes] = []
        async with b.http() as http:
            with b.preferring(first):
                running = asyncio.create_task(stream(http, CHAT, body, arrived=arrived))
                await eventually(lambda: b"".join(arrived).count(b"content") >= 9, 5)
            b.kube.drop(POD, first.pod)
            same(await asyncio.wait_for(running, 30), whole)


async def test_a_silent_replica_is_lost_after_the_deadline() -> None:
    async with bench(next_byte_timeout_s=0.3) as b:
        await b.tier("demo")
        await b.replica()
        await b.replica()
        whole = await undisturbed(b, CHAT, chat(**GREEDY))
        same(await cut(b, CHAT, chat(**GREEDY), 9, "hang_stream"), whole)


@pytest.mark.fault(36)
async def test_a_doomed_replica_gets_nothing_new_and_finishes_what_it_has() -> None:
    async with bench(tokens_per_s=200) as b:
        await b.tier("demo")
        doomed, other = await b.replica(), await b.replica()
        async with b.http() as http:
            with b.preferring(doomed):
                running = asyncio.create_task(stream(http, CHAT, chat()))
                await eventually(lambda: len(doomed.sim.requests) == 1, 5)
            notice = {names.ANNOTATION_DOOMED_UNTIL: "2026-11-21T08:00:00Z"}
            b.kube.put(POD, b.pod(doomed.pod, "demo", doomed.sim.port, annotations=notice))
            await eventually(lambda: b.routable() == [other.pod], 5)
            for _ in range(3):
                await stream(http, CHAT, chat(max_tokens=2))
            assert (await running).done == 1
        assert len(doomed.sim.requests) == 1
        assert len(other.sim.requests) == 3


async def test_an_answer_never_continues_on_another_revision_of_the_model() -> None:
    async with bench() as b:
        await b.tier("demo")
        first = await b.replica()
        await b.replica(model="/cache/weights/def")
        first.sim.faults.plan = Fault(mode="rst_all", after_chunks=9, times=1)
        async with b.http() as http:
            with b.preferring(first):
                seen = await stream(http, CHAT, chat())
        assert seen.error is not None
        assert seen.error["code"] == "not_continuable"
        assert not seen.clean
        assert seen.done == 0


async def test_a_replica_with_a_shorter_context_cannot_carry_the_answer_on() -> None:
    """Nothing is wrong with the request: the client hears what the new replica said about it."""
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        await b.replica(max_model_len=20)
        seen = await cut(b, CHAT, chat(), 40)
        assert seen.error is not None
        assert seen.error["code"] == "not_continuable"
        assert "maximum context length" in seen.error["message"]
        assert (seen.clean, seen.done) == (False, 0)


@pytest.mark.fault(37)
async def test_what_cannot_be_continued_ends_with_an_error_and_an_aborted_connection() -> None:
    async with bench() as b:
        await b.tier("demo", interruption={"continuation": "off"})
        await b.replica()
        await b.replica()
        seen = await cut(b, CHAT, chat(), 10)
        assert seen.error is not None
        assert seen.error["code"] == "not_continuable"
        assert seen.done == 0
        assert not seen.clean


@pytest.mark.fault(62)
async def test_a_replica_that_answers_otherwise_is_never_appended_to() -> None:
    """Another model under the same name: the replay differs, the stream ends honestly."""
    async with bench() as b:
        await b.tier("demo")
        first = await b.replica()
        other = await b.replica()
        first.sim.faults.plan = Fault(mode="rst", after_chunks=10, times=1)
        other.sim.faults.plan = Fault(mode="done_no_finish", after_chunks=0, times=1)
        async with b.http() as http:
            with b.preferring(first):
                seen = await stream(http, CHAT, chat(**SEEDED))
        assert seen.error is None  # [DONE] alone is a loss like any other, and is survived
        assert seen.done == 1


async def test_the_process_killed_mid_stream(tmp_path: Path) -> None:
    """SIGKILL of a real engine process; the other replica carries on."""
    body = chat(**GREEDY)
    async with bench() as b, engine_process(tmp_path) as victim:
        await b.tier("demo")
        other = await b.replica()
        whole = await undisturbed(b, CHAT, body)
        b.kube.put(POD, b.pod("victim", "demo", victim.port))
        await eventually(lambda: "victim" in b.routable(), 5)
        await victim.faults(mode="sigkill", after_chunks=21)
        async with b.http() as http:
            with b.preferring(Engine("victim", other.sim)):
                same(await stream(http, CHAT, body), whole)
        assert await victim.exit_code() == -9
        assert other.sim.requests[-1]["path"] == "/v1/completions"


async def test_a_draining_engine_gives_its_answers_back(tmp_path: Path) -> None:
    """SIGTERM with a drain too short: an error event, then [DONE]; the answer goes on elsewhere."""
    body = chat(**GREEDY)
    slow = {"SPOTINFERENCE_SIM_TOKENS_PER_S": "50"}
    async with (
        bench() as b,
        engine_process(tmp_path, "--shutdown-timeout", "0.3", **slow) as victim,
    ):
        await b.tier("demo")
        other = await b.replica()
        whole = await undisturbed(b, CHAT, body)
        b.kube.put(POD, b.pod("victim", "demo", victim.port))
        await eventually(lambda: "victim" in b.routable(), 5)
        arrived: list[bytes] = []
        async with b.http() as http:
            with b.preferring(Engine("victim", other.sim)):
                running = asyncio.create_task(stream(http, CHAT, body, arrived=arrived))
                await eventually(lambda: b"".join(arrived).count(b"content") >= 5, 5)
                victim.send(signal.SIGTERM)
                await asyncio.sleep(0.1)
                # A new request is answered elsewhere although the pod still looks ready.
                same(await stream(http, CHAT, body), whole)
            same(await running, whole)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(n=3, temperature=1.0, seed=3)),
        (COMPLETION, completion(["once", "twice"])),
        (COMPLETION, completion(["once", "twice"], n=2, temperature=1.0, seed=3)),
    ],
    ids=["n", "prompts", "prompts-n"],
)
async def test_each_of_several_choices_goes_on_where_it_was(path: str, body: Json) -> None:
    body |= WITH_USAGE
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        await b.replica()
        whole = await undisturbed(b, path, body)
        for after in (0, 1, 7, 50, 119):
            seen = await cut(b, path, body, after)
            assert seen.error is None, seen.error
            assert seen.texts == whole.texts
            assert sorted(seen.finishes) == sorted(whole.finishes)
            assert seen.usages == whole.usages
            assert (seen.done, len(seen.identities)) == (1, 1)


@pytest.mark.parametrize("more", [{}, {"stream_options": {"continuous_usage_stats": True}}])
async def test_usage_that_nobody_asked_for_does_not_reach_the_client(more: Json) -> None:
    async with bench() as b:
        await b.tier("demo")
        engine = await b.replica()
        seen = await undisturbed(b, CHAT, chat(**more))
        asked = engine.sim.requests[-1]["body"]
        assert asked["stream_options"] == {"include_usage": True}  # type: ignore[index]
        assert b"usage" not in seen.raw
        assert seen.done == 1


async def test_a_long_answer_is_kept_within_the_bound_and_continues() -> None:
    body = chat(max_tokens=1900, ignore_eos=True, **WITH_USAGE)
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        await b.replica()
        whole = await undisturbed(b, CHAT, body)
        assert len(whole.raw) > MAX_RAW_BYTES
        same(await cut(b, CHAT, body, 1800), whole)


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params"])
async def test_a_client_may_not_name_hosts_that_an_engine_should_read_from(name: str) -> None:
    async with bench() as b:
        await b.tier("demo")
        engine = await b.replica()
        seen = await undisturbed(b, CHAT, chat() | {name: {"remote_host": "10.0.0.1"}})
        assert (seen.status, json.loads(seen.raw)["error"]["param"]) == (400, name)
        assert not engine.sim.requests


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["token", "replay"])
async def test_a_client_that_leaves_during_the_continuation_frees_the_new_replica(
    params: Json,
) -> None:
    async with bench() as b:
        await b.tier("demo")
        first = await b.replica()
        second = await b.replica(tokens_per_s=40)
        first.sim.faults.plan = Fault(mode="rst", after_chunks=30, times=1)
        async with b.http() as http:
            with b.preferring(first):
                running = asyncio.create_task(stream(http, CHAT, chat(**params)))
                await eventually(lambda: second.sim.engine.unfinished == 1, 5)
            running.cancel()
            await eventually(lambda: second.sim.engine.unfinished == 0, 5)
        assert b.parked() == 0
