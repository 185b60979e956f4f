"""The cluster below the gateway fails: no API server, a crowd at a sleeping tier, nodes that go."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from spotinference.api import names
from spotinference.api.kinds import POD
from tests.gateway.test_edges import is_whole
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, Bench, Engine, Seen, bench, chat, stream


async def ready(b: Bench) -> int:
    async with b.http() as http, http.get(f"{b.gateway.metrics_url}/readyz") as response:
        return response.status


@pytest.mark.fault(11)
async def test_without_an_api_server_the_gateway_serves_with_what_it_knows() -> None:
    async with bench() as b:
        await b.tier("demo")
        first, second = await b.replica(), await b.replica()
        async with b.http() as http:
            undisturbed = await stream(http, CHAT, chat())
            b.kube.go_away()
            for _ in range(5):
                is_whole(await stream(http, CHAT, chat()), undisturbed)
            await first.sim.kill()
            for _ in range(5):  # found out by asking: nobody tells it of the pod
                is_whole(await stream(http, CHAT, chat()), undisturbed)
            assert len(second.sim.requests) >= 5
            assert await ready(b) == 200
            later = await b.start_engine()
            b.kube.put(POD, b.pod("later", "demo", later.port))
            b.kube.drop(POD, first.pod)
            assert "later" not in b.routable()
            b.kube.away = False
            await eventually(lambda: sorted(b.routable()) == ["demo-1", "later"], 15)
            await later.stop()


@pytest.mark.fault(11, 31)
async def test_a_wake_asked_for_without_an_api_server_comes_when_it_is_back() -> None:
    async with bench(demand_retry_max_s=0.1) as b:
        await b.tier("demo")
        b.kube.go_away()
        async with b.http() as http:
            asked = asyncio.create_task(http.post(CHAT, json=chat(stream=False)))
            await eventually(lambda: b.parked() == 1, 5)
            b.kube.away = False
            await eventually(b.kube.leases, 5, "the demand is written")
            sim = await b.start_engine()
            b.kube.put(POD, b.pod("demo-0", "demo", sim.port))
            assert (await asyncio.wait_for(asked, 15)).status == 200
            await sim.stop()


@pytest.mark.fault(31)
async def test_a_thousand_requests_are_one_wake_and_what_is_too_much_is_told_so() -> None:
    async with bench() as b:
        await b.tier("demo", wake={"maxParked": 900})
        async with b.http() as http:
            asked = [
                asyncio.create_task(http.post(CHAT, json=chat(stream=False, max_tokens=1)))
                for _ in range(1000)
            ]
            refused: list[Any] = []
            await eventually(lambda: b.parked() == 900, 20)
            await eventually(lambda: sum(task.done() for task in asked) == 100, 20)
            refused = [task.result() for task in asked if task.done()]
            assert {response.status for response in refused} == {429}
            assert all(int(response.headers["Retry-After"]) > 0 for response in refused)
            await eventually(b.kube.leases, 5)
            assert b.kube.writes == [("apply", "demo-demand-gw-test")]
            await b.replica(max_num_seqs=1000)
            answers = await asyncio.gather(*(task for task in asked if not task.done()))
            statuses = [response.status for response in (*answers, *refused)]
            assert statuses.count(200) == 900


def doom(b: Bench, engine: Engine, until: str) -> None:
    """A notice: its node will be gone at this time."""
    notice = {names.ANNOTATION_DOOMED_UNTIL: until}
    b.kube.put(POD, b.pod(engine.pod, "demo", engine.sim.port, annotations=notice))


@pytest.mark.fault(36)
async def test_a_notice_and_then_the_reclaim_break_no_answer() -> None:
    async with bench(tokens_per_s=60) as b:
        await b.tier("demo")
        going, staying = await b.replica(), await b.replica()
        async with b.http() as http:
            with b.preferring(staying):
                undisturbed = await stream(http, CHAT, chat())
            with b.preferring(going):
                short = asyncio.create_task(stream(http, CHAT, chat(max_tokens=10)))
                long = asyncio.create_task(stream(http, CHAT, chat()))
                await eventually(lambda: len(going.sim.requests) == 2, 5)
            doom(b, going, "2026-11-01T00:02:00Z")
            await eventually(lambda: b.routable() == [staying.pod], 5)
            after = await stream(http, CHAT, chat())
            assert len(going.sim.requests) == 2, "nothing new goes there"
            is_whole(after, undisturbed)
            assert (await short).done == 1
            await b.lose_node(going)
            is_whole(await long, undisturbed)


@pytest.mark.fault(37, 38)
async def test_when_all_replicas_go_at_once_everything_waits_and_ends_as_if_nothing_was() -> None:
    async with bench(tokens_per_s=100, heartbeat_s=0.1) as b:
        await b.tier("demo")
        engines = [await b.replica() for _ in range(3)]
        async with b.http() as http:
            undisturbed = await stream(http, CHAT, chat())
            asked = sum(len(engine.sim.requests) for engine in engines)
            streams = [asyncio.create_task(stream(http, CHAT, chat())) for _ in range(9)]
            whole = [
                asyncio.create_task(http.post(CHAT, json=chat(stream=False))) for _ in range(3)
            ]
            await eventually(
                lambda: sum(len(engine.sim.requests) for engine in engines) == asked + 12, 5
            )
            await asyncio.gather(*(b.lose_node(engine) for engine in engines))
            await eventually(lambda: b.parked() == 12, 5)
            await eventually(b.kube.leases, 5, "the tier is woken again")
            await b.replica()
            for seen in await asyncio.gather(*streams):
                is_whole(seen, undisturbed)
            for response in await asyncio.gather(*whole):
                assert response.status == 200
                body = await response.json()
                assert body["choices"][0]["message"]["content"] == undisturbed.text


@pytest.mark.fault(38)
async def test_when_none_comes_back_everybody_is_told_at_the_cap() -> None:
    async with bench(tokens_per_s=100, heartbeat_s=0.1) as b:
        await b.tier("demo", wake={"cap": "1s", "budget": "1s"})
        engine = await b.replica()
        async with b.http() as http:
            arrived: list[bytes] = []
            streamed = asyncio.create_task(stream(http, CHAT, chat(), arrived=arrived))
            whole = asyncio.create_task(http.post(CHAT, json=chat(stream=False)))
            await eventually(lambda: len(arrived) > 3 and len(engine.sim.requests) == 2, 5)
            await b.lose_node(engine)
            seen: Seen = await asyncio.wait_for(streamed, 10)
            assert seen.error is not None
            assert seen.error["code"] == "wake_timeout"
            assert not seen.clean
            assert (await asyncio.wait_for(whole, 10)).status == 504
        await eventually(lambda: not b.kube.leases(), 5, "nothing is asked for any more")


@pytest.mark.fault(49)
async def test_a_load_of_many_heartbeats_is_one_answer_in_the_end() -> None:
    """25 minutes in the time of a second: a heartbeat each 10 s is one each 7 ms."""
    async with bench(fail_fast_s=0.01, heartbeat_s=0.007, empty_chunk_s=0.04) as b:
        await b.tier("demo")
        async with b.http() as http:
            arrived: list[bytes] = []
            running = asyncio.create_task(stream(http, CHAT, chat(), arrived=arrived))
            await eventually(lambda: b"".join(arrived).count(b"eta_seconds=") >= 100, 15)
            await b.replica()
            is_whole(await running, await stream(http, CHAT, chat()))
