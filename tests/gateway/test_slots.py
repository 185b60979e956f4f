"""Turns and slots: nobody waits while a replica is free, nor for one that is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from spotinference.api.kinds import POD, Json
from spotinference.devcluster.simengine.faults import Fault
from tests.gateway.test_parking import use_key
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, Bench, Engine, Seen, bench, chat, stream


@asynccontextmanager
async def narrow(
    b: Bench, *, model: str = "/cache/weights/abc", **options: Any
) -> AsyncIterator[None]:
    """A replica that takes one request at a time is there while the block runs."""
    sim = await b.start_engine(**options)
    pod = b.pod("narrow", "demo", sim.port, model=model)
    pod["spec"]["containers"][0]["args"] += ["--max-num-seqs", "1"]
    b.kube.put(POD, pod)
    try:
        yield
    finally:
        await sim.stop()


async def begun(http: aiohttp.ClientSession) -> tuple[asyncio.Task[Seen], list[bytes]]:
    """A stream that has something of its answer, and what comes of it."""
    arrived: list[bytes] = []
    task = asyncio.create_task(stream(http, CHAT, chat(), arrived=arrived))
    await eventually(lambda: len(arrived) > 4, 5)
    return task, arrived


async def full_replica(b: Bench) -> Engine:
    """One that takes nothing until its fault is taken away."""
    full = await b.replica()
    full.sim.faults.plan = Fault(mode="status", status=503)
    return full


async def test_who_cannot_use_its_turn_gives_it_to_the_next() -> None:
    async with bench(heartbeat_s=0.05) as b:
        await b.tier("demo")
        lost = await b.replica(tokens_per_s=100)
        async with b.http() as http:
            cut, _ = await begun(http)
            await b.lose_node(lost)
            await eventually(lambda: b.parked() == 1, 5)
            second = asyncio.create_task(stream(http, CHAT, chat("second")))
            await eventually(lambda: b.parked() == 2, 5)
            async with narrow(b, model="/cache/weights/another"):
                error = (await cut).error
                assert error is not None
                assert error["code"] == "not_continuable"
                assert (await asyncio.wait_for(second, 5)).done == 1


async def test_a_cut_answer_whose_last_full_replica_goes_wakes_the_tier() -> None:
    async with bench(heartbeat_s=0.05, busy_wait_s=0.3) as b:
        await b.tier("demo")
        lost = await b.replica(tokens_per_s=100)
        async with b.http() as http:
            cut, _ = await begun(http)
            full = await full_replica(b)
            await b.lose_node(lost)
            await eventually(lambda: len(full.sim.requests) > 0 and b.parked() == 1, 5)
            assert not b.kube.leases()
            await b.lose_node(full)
            await eventually(b.kube.leases, 5, "the tier is asked for")
            await b.replica()
            assert (await cut).done == 1


async def test_a_key_that_does_not_wait_does_not_do_so_behind_others_either() -> None:
    async with bench(busy_wait_s=0.3, heartbeat_s=0.05) as b:
        await b.tier("demo")
        async with b.http() as http:
            long: Json = {"max_tokens": 2000, "ignore_eos": True}
            waiting = [asyncio.create_task(stream(http, CHAT, chat(**long))) for _ in range(3)]
            await eventually(lambda: b.parked() == 3, 5)
            async with narrow(b, tokens_per_s=100):
                await eventually(lambda: b.parked() == 2, 5)
                await use_key(b, wait="reject")
                async with asyncio.timeout(5), http.post(CHAT, json=chat(stream=False)) as response:
                    assert response.status == 503
                    assert (await response.json())["error"]["code"] == "engine_busy"
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_cut_answer_that_waits_for_a_slot_gives_signs_of_life_that_are_parsed_too() -> None:
    async with bench(heartbeat_s=0.05, busy_wait_s=0.1, empty_chunk_s=0.4) as b:
        await b.tier("demo")
        lost = await b.replica(tokens_per_s=100)
        async with b.http() as http:
            cut, arrived = await begun(http)
            full = await full_replica(b)
            await b.lose_node(lost)
            await eventually(lambda: b"".join(arrived).count(b'"choices":[]') > 1, 5)
            full.sim.faults.plan = Fault()
            assert (await cut).done == 1
            one_wait = 'spotinference_gateway_parked_seconds_count{tier="demo"} 1.0'
            assert one_wait in b.gateway.context.metrics.render().decode()
