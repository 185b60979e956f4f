"""Where requests go, when a replica is left out, and how long an engine is waited for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from spotinference.core.observed import TierRef
from spotinference.devcluster.simengine.faults import Fault
from spotinference.gateway.replicas import Replica
from tests.support.eventually import eventually
from tests.support.fake_kube import NAMESPACE
from tests.support.gateway import (
    CHAT,
    COMPLETION,
    Bench,
    bench,
    chat,
    completion,
    stream,
)

LONG = "the same long beginning of every prompt, " * 60


def value(metric: Any) -> float:
    return float(metric._value.get())


def replicas(b: Bench) -> dict[str, Replica]:
    return {r.name: r for r in b.gateway.context.replicas.of(TierRef(NAMESPACE, "demo"))}


async def test_long_prompts_that_begin_alike_go_to_one_replica() -> None:
    async with bench() as b:
        await b.tier("demo")
        engines = [await b.replica() for _ in range(3)]
        async with b.http() as http:
            for n in range(6):
                prompt = LONG + f"and another end {n}"
                assert (await stream(http, COMPLETION, completion(prompt, max_tokens=2))).done
            counts = sorted(len(engine.sim.requests) for engine in engines)
            assert counts == [0, 0, 6]


async def test_a_session_stays_on_its_replica() -> None:
    async with bench() as b:
        await b.tier("demo")
        engines = [await b.replica() for _ in range(3)]
        async with b.http() as http:
            for n in range(6):
                headers = {"x-session-id": "a conversation"}
                async with http.post(CHAT, json=chat(f"{n}"), headers=headers) as response:
                    await response.read()
        assert sorted(len(engine.sim.requests) for engine in engines) == [0, 0, 6]
        assert "x-session-id" not in str(engines[0].sim.requests).lower()


async def test_affinity_gives_way_before_a_replica_is_overloaded() -> None:
    async with bench(tokens_per_s=20) as b:
        await b.tier("demo")
        engines = [await b.replica() for _ in range(2)]
        async with b.http() as http:
            body = completion(LONG, max_tokens=200, ignore_eos=True)
            running = [asyncio.create_task(stream(http, COMPLETION, body)) for _ in range(40)]
            await eventually(lambda: sum(e.sim.engine.unfinished for e in engines) == 40, 10)
            shares = sorted(e.sim.engine.unfinished for e in engines)
            assert shares[0] >= 12, shares
            for task in running:
                task.cancel()
            await eventually(lambda: all(r.outstanding == 0 for r in replicas(b).values()), 5)


async def test_work_is_counted_in_tokens_not_in_requests() -> None:
    async with bench(tokens_per_s=20) as b:
        await b.tier("demo")
        big, small = await b.replica(), await b.replica()
        async with b.http() as http:
            with b.preferring(big):
                one = asyncio.create_task(stream(http, CHAT, chat(max_tokens=250, ignore_eos=True)))
                await eventually(lambda: big.sim.engine.unfinished == 1, 5)
            few = [
                asyncio.create_task(stream(http, CHAT, chat("short", max_tokens=30)))
                for _ in range(4)
            ]
            await eventually(lambda: small.sim.engine.unfinished == 4, 5)
            assert big.sim.engine.unfinished == 1
            for task in (one, *few):
                task.cancel()


async def test_a_replica_that_fails_again_and_again_is_left_out_and_comes_back() -> None:
    async with bench(eject_s=0.2) as b:
        await b.tier("demo")
        sick, well = await b.replica(), await b.replica()
        sick.sim.faults.plan = Fault(mode="status", status=500)
        async with b.http() as http:
            for _ in range(3):
                with b.preferring(sick):
                    assert (await stream(http, CHAT, chat())).done
            assert replicas(b)[sick.pod].ejected
            assert value(b.gateway.context.metrics.ejections.labels("answers")) == 1
            asked = len(sick.sim.requests)
            with b.preferring(sick):
                assert (await stream(http, CHAT, chat())).done
            assert len(sick.sim.requests) == asked
            await eventually(lambda: not replicas(b)[sick.pod].ejected, 5, "probed back")
            with b.preferring(sick):
                assert (await stream(http, CHAT, chat())).done
            assert replicas(b)[sick.pod].ejected, "on probation one failure is enough"
            sick.sim.faults.plan = Fault()
            await eventually(lambda: not replicas(b)[sick.pod].ejected, 5)
            with b.preferring(sick):
                assert (await stream(http, CHAT, chat())).done
            assert replicas(b)[sick.pod].strikes == 0
        assert len(well.sim.requests) == 5


async def test_a_sick_tier_is_not_ejected_as_a_whole() -> None:
    async with bench(max_losses=2) as b:
        await b.tier("demo")
        for _ in range(3):
            (await b.replica()).sim.faults.plan = Fault(mode="status", status=500)
        async with b.http() as http:
            for _ in range(8):
                async with http.post(CHAT, json=chat()) as response:
                    assert response.status == 502
                    assert (await response.json())["error"]["code"] == "engine_failed"
        assert len(b.routable()) == 2


async def test_a_sick_tier_is_not_hammered_with_retries() -> None:
    async with bench(retries_per_s=0.0, retry_share=0.2) as b:
        await b.tier("demo")
        engine = await b.replica()
        engine.sim.faults.plan = Fault(mode="status", status=500)
        async with b.http() as http:
            for _ in range(20):
                async with http.post(CHAT, json=chat()) as response:
                    assert response.status == 502
                    assert (await response.json())["error"]["code"] == "engine_failed"
        assert len(engine.sim.requests) <= 24


async def test_the_retry_budget_never_ends_an_answer_that_has_begun() -> None:
    async with bench(retries_per_s=0.0, retry_share=0.0) as b:
        await b.tier("demo")
        first, second = await b.replica(), await b.replica()
        async with b.http() as http:
            with b.preferring(second):
                undisturbed = await stream(http, CHAT, chat())
            first.sim.faults.plan = Fault(mode="error_event", after_chunks=9, times=1)
            with b.preferring(first):
                seen = await stream(http, CHAT, chat())
        assert seen.text == undisturbed.text


@pytest.mark.fault(61)
async def test_an_engine_that_never_answers_is_left_at_the_deadline_of_the_first_byte() -> None:
    async with bench(first_byte_timeout_s=0.2, deadline_check_s=0.05) as b:
        await b.tier("demo")
        hung, well = await b.replica(), await b.replica()
        hung.sim.faults.plan = Fault(mode="hang_headers", times=1)
        async with b.http() as http:
            with b.preferring(hung):
                seen = await asyncio.wait_for(stream(http, CHAT, chat()), 10)
        assert seen.done == 1
        assert (len(hung.sim.requests), len(well.sim.requests)) == (1, 1)
        assert value(b.gateway.context.metrics.deadlines.labels("demo", "first")) == 1


async def test_the_deadline_of_the_first_byte_follows_what_the_tier_was_measured_at() -> None:
    async with bench(first_byte_floor_s=0.1, deadline_check_s=0.05) as b:
        await b.tier("demo")
        first, second = await b.replica(), await b.replica()
        async with b.http() as http:
            for engine in (first, second) * 10:
                with b.preferring(engine):
                    assert (await stream(http, CHAT, chat(max_tokens=3))).done
            first.sim.faults.plan = Fault(mode="hang_headers", times=1)
            with b.preferring(first):
                seen = await asyncio.wait_for(stream(http, CHAT, chat()), 10)
        assert seen.done == 1


async def test_an_answer_that_trickles_beyond_its_total_deadline_is_carried_on_elsewhere() -> None:
    async with bench(first_byte_timeout_s=0.5, answer_timeout_s=0.5, deadline_check_s=0.05) as b:
        await b.tier("demo")
        slow, fast = await b.replica(tokens_per_s=20), await b.replica()
        async with b.http() as http:
            with b.preferring(fast):
                undisturbed = await stream(http, CHAT, chat())
            with b.preferring(slow):
                seen = await asyncio.wait_for(stream(http, CHAT, chat()), 10)
        assert seen.text == undisturbed.text
        assert value(b.gateway.context.metrics.deadlines.labels("demo", "total")) == 1
