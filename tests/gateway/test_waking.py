"""A sleeping tier: requests wait, one write asks for it, everybody is told the truth."""

from __future__ import annotations

import asyncio
import time

import pytest

from spotinference.api import demand as demand_api
from spotinference.api.kinds import LEASE, POD, TIER
from spotinference.devcluster.simengine.faults import Fault
from tests.support.eventually import eventually
from tests.support.fake_kube import NAMESPACE
from tests.support.gateway import CHAT, Bench, bench, chat, stream
from tests.support.stalls import stalls


@pytest.mark.fault(31)
async def test_200_requests_wake_a_tier_with_one_write_and_are_served_in_order() -> None:
    async with bench(connect_timeout_s=20) as b:
        await b.tier("demo")
        sim = await b.start_engine()
        async with b.http() as http:
            asked = []
            for number in range(200):
                body = chat(f"request {number}", stream=False, max_tokens=2)
                asked.append(asyncio.create_task(http.post(CHAT, json=body)))
                async with asyncio.timeout(5):
                    while b.parked() <= number:  # noqa: ASYNC110 - polls of 50 ms would take 10 s
                        await asyncio.sleep(0)
            await eventually(b.kube.leases, 5)
            assert b.kube.writes == [("apply", "demo-demand-gw-test")]
            b.kube.put(POD, b.pod("demo-0", "demo", sim.port))
            answers = await asyncio.gather(*asked)
            assert {answer.status for answer in answers} == {200}
        order = [request["body"]["messages"][0]["content"] for request in sim.requests]  # type: ignore[index]
        assert order == [f"request {number}" for number in range(200)]
        await eventually(lambda: not b.kube.leases(), 5)
        assert b.kube.writes == [
            ("apply", "demo-demand-gw-test"),
            ("delete", "demo-demand-gw-test"),
        ]
        await sim.stop()


async def test_demand_says_who_waits_and_since_when_and_is_owned_by_the_tier() -> None:
    async with bench() as b:
        await b.tier("demo")
        async with b.http() as http:
            waiting = asyncio.create_task(http.post(CHAT, json=chat()))
            await eventually(lambda: len(b.kube.leases()) == 1, 5)
            lease = b.kube.leases()[0]
            said = demand_api.parse(lease)
            assert said is not None
            assert (said.gateway_id, said.parked) == ("gw-test", 1)
            assert lease["metadata"]["ownerReferences"][0]["uid"] == "uid-demo"
            waiting.cancel()
            await eventually(lambda: not b.kube.leases(), 5, "withdrawn when nobody waits")


async def test_demand_leaves_within_milliseconds_of_the_request() -> None:
    async with bench() as b:
        await b.tier("demo")
        async with b.http() as http:
            async with http.get("/healthz") as warm:
                await warm.read()
            took = []
            for _ in range(20):
                started = asyncio.get_running_loop().time()
                waiting = asyncio.create_task(http.post(CHAT, json=chat()))
                before = len(b.kube.applied_at)
                await eventually(lambda n=before: len(b.kube.applied_at) > n, 5)  # type: ignore[misc]
                took.append(b.kube.applied_at[-1] - started)
                waiting.cancel()
                await eventually(lambda: b.parked() == 0 and not b.kube.leases(), 5)
        assert sorted(took)[len(took) // 2] < 0.02


async def test_demand_is_written_again_when_the_api_server_was_away() -> None:
    async with bench() as b:
        await b.tier("demo")
        b.kube.fail_writes = 3
        async with b.http() as http:
            waiting = asyncio.create_task(http.post(CHAT, json=chat()))
            await eventually(lambda: len(b.kube.leases()) == 1, 5)
            assert len(b.kube.writes) == 4
            waiting.cancel()


async def test_demand_is_renewed_while_anybody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand_api, "RENEW_S", 0.1)
    async with bench() as b:
        await b.tier("demo")
        async with b.http() as http:
            waiting = asyncio.create_task(http.post(CHAT, json=chat()))
            await eventually(lambda: len(b.kube.writes) >= 3, 5)
            waiting.cancel()
            await eventually(lambda: b.kube.writes[-1][0] == "delete", 5)


@pytest.mark.fault(38)
async def test_the_cap_is_a_true_504_for_whoever_has_no_headers_yet() -> None:
    async with bench(fail_fast_s=10) as b:
        await b.tier("demo", wake={"cap": "1s", "budget": "1s"})
        async with b.http() as http:
            for body in (chat(stream=False), chat()):
                started = time.monotonic()
                async with stalls() as late, http.post(CHAT, json=body) as response:
                    assert response.status == 504
                    assert (await response.json())["error"]["code"] == "wake_timeout"
                    assert response.headers["x-should-retry"] == "false"
                assert 0.9 < time.monotonic() - started < 1.1 + late.total_s
        await eventually(lambda: not b.kube.leases(), 5, "demand is withdrawn")


@pytest.mark.fault(38)
async def test_the_cap_ends_a_stream_with_an_event_and_an_aborted_connection() -> None:
    async with bench(fail_fast_s=0.1, heartbeat_s=0.1, empty_chunk_s=0.3) as b:
        await b.tier(
            "demo",
            wake={"cap": "1s", "budget": "1s"},
            status={"phase": "Asleep", "lastWakeSeconds": 90},
        )
        async with b.http() as http:
            seen = await stream(http, CHAT, chat())
        assert seen.status == 200
        assert int(seen.headers["x-spotinference-eta"]) in range(80, 91)
        assert len(seen.comments) >= 4
        assert seen.comments[0].startswith(b": waking eta_seconds=")
        assert seen.error is not None
        assert (seen.error["code"], seen.error["status"]) == ("wake_timeout", 504)
        assert seen.done == 0
        assert not seen.clean
        empty = [chunk for chunk in seen.chunks if chunk.get("choices") == []]
        assert len(empty) >= 2
        assert len(seen.identities) == 1


@pytest.mark.fault(49)
async def test_a_stream_that_was_kept_alive_is_one_answer_under_one_identity() -> None:
    async with bench(fail_fast_s=0.05, heartbeat_s=0.05, empty_chunk_s=0.1) as b:
        await b.tier("demo")
        async with b.http() as http:
            arrived: list[bytes] = []
            running = asyncio.create_task(stream(http, CHAT, chat(), arrived=arrived))
            await eventually(lambda: b'"choices":[]' in b"".join(arrived), 5)
            await b.replica()
            seen = await running
            plain = await stream(http, CHAT, chat())
        assert seen.text == plain.text
        assert seen.done == 1
        assert seen.roles == 1
        assert len(seen.identities) == 1


async def test_heartbeats_can_be_switched_off() -> None:
    async with bench(fail_fast_s=0.05, heartbeat_s=0.05) as b:
        await b.tier("demo", wake={"heartbeat": "off", "cap": "1s", "budget": "1s"})
        async with b.http() as http, http.post(CHAT, json=chat()) as response:
            assert response.status == 504


@pytest.mark.fault(31)
async def test_one_more_than_may_wait_is_refused_at_once() -> None:
    async with bench() as b:
        await b.tier("demo", wake={"maxParked": 3})
        async with b.http() as http:
            waiting = [asyncio.create_task(http.post(CHAT, json=chat())) for _ in range(3)]
            await eventually(lambda: b.parked() == 3, 5)
            async with http.post(CHAT, json=chat()) as response:
                assert response.status == 429
                assert response.headers["Retry-After"] == "5"
                assert (await response.json())["error"]["code"] == "parked_full"
            for task in waiting:
                task.cancel()


@pytest.mark.fault(60)
async def test_the_last_client_that_leaves_calls_the_wake_off() -> None:
    async with bench() as b:
        await b.tier("demo")
        async with b.http() as http:
            waiting = [asyncio.create_task(http.post(CHAT, json=chat())) for _ in range(2)]
            await eventually(lambda: b.parked() == 2, 5)
            waiting[0].cancel()
            await eventually(lambda: b.parked() == 1, 1)
            assert len(b.kube.leases()) == 1
            waiting[1].cancel()
            await eventually(lambda: b.parked() == 0 and not b.kube.leases(), 1)


@pytest.mark.fault(60)
async def test_a_client_that_leaves_mid_stream_stops_the_engine_within_a_second() -> None:
    async with bench(tokens_per_s=50) as b:
        await b.tier("demo")
        engine = await b.replica()
        async with b.http() as http:
            arrived: list[bytes] = []
            running = asyncio.create_task(
                stream(http, CHAT, chat(max_tokens=2000), arrived=arrived)
            )
            await eventually(lambda: len(arrived) > 3, 5)
            running.cancel()
            await eventually(lambda: engine.sim.engine.unfinished == 0, 1)


async def test_deleted_and_paused_tiers_say_so_to_those_who_wait() -> None:
    async with bench() as b:
        for change, code in ((delete, "tier_deleted"), (pause, "tier_paused")):
            await b.tier("demo")
            async with b.http() as http:
                waiting = asyncio.create_task(http.post(CHAT, json=chat()))
                await eventually(lambda: b.parked() == 1, 5)
                await change(b)
                response = await waiting
                assert response.status == 503
                assert (await response.json())["error"]["code"] == code


async def delete(b: Bench) -> None:
    b.kube.drop(TIER, "demo")


async def pause(b: Bench) -> None:
    await b.tier("demo", paused=True)


@pytest.mark.fault(68)
async def test_a_paused_tier_wakes_nobody() -> None:
    async with bench() as b:
        await b.tier("demo", paused=True)
        async with b.http() as http, http.post(CHAT, json=chat()) as response:
            assert response.status == 503
            assert (await response.json())["error"]["code"] == "tier_paused"
        assert b.kube.writes == []


async def test_a_replica_that_refuses_connections_is_left_out_and_probed_back() -> None:
    async with bench() as b:
        await b.tier("demo")
        sim = await b.start_engine()
        port = sim.port
        await sim.stop()
        b.kube.put(POD, b.pod("demo-0", "demo", port))
        await eventually(lambda: b.routable() == ["demo-0"], 5)
        async with b.http() as http:
            waiting = asyncio.create_task(http.post(CHAT, json=chat(stream=False)))
            await eventually(lambda: b.parked() == 1 and b.kube.leases(), 5)
            back = await b.start_engine(port=port)
            response = await waiting
            assert response.status == 200
            await back.stop()


async def test_a_released_request_whose_replica_is_dead_returns_to_its_place() -> None:
    async with bench() as b:
        await b.tier("demo")
        async with b.http() as http:
            first = asyncio.create_task(http.post(CHAT, json=chat("first", stream=False)))
            await eventually(lambda: b.parked() == 1, 5)
            dead = await b.start_engine()
            port = dead.port
            await dead.stop()
            b.kube.put(POD, b.pod("demo-0", "demo", port))
            await eventually(
                lambda: b.gateway.context.metrics.ejections.labels("connection")._value.get() == 1,
                5,
            )
            second = asyncio.create_task(http.post(CHAT, json=chat("second", stream=False)))
            await eventually(lambda: b.parked() == 2, 5)
            engine = await b.replica(name="demo-1")
            assert (await first).status == (await second).status == 200
        order = [r["body"]["messages"][0]["content"] for r in engine.sim.requests]  # type: ignore[index]
        assert order == ["first", "second"]


@pytest.mark.fault(62)
@pytest.mark.parametrize("mode", ["refuse", "status"])
async def test_a_request_that_got_no_answer_is_sent_to_another_replica(mode: str) -> None:
    async with bench() as b:
        await b.tier("demo")
        first, second = await b.replica(), await b.replica()
        for body in (chat(), chat(stream=False)):
            for status in (503, 500):
                first.sim.faults.plan = Fault(mode=mode, status=status, times=1)  # type: ignore[arg-type]
                async with b.http() as http:
                    with b.preferring(first):
                        async with http.post(CHAT, json=body) as response:
                            assert response.status == 200
        assert len(second.sim.requests) == 4


async def test_full_queues_everywhere_are_a_503_with_retry_after() -> None:
    async with bench() as b:
        await b.tier("demo")
        for engine in (await b.replica(), await b.replica()):
            engine.sim.faults.plan = Fault(mode="status", status=503)
        async with b.http() as http, http.post(CHAT, json=chat()) as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "1"
            assert (await response.json())["error"]["code"] == "engine_busy"


@pytest.mark.fault(61)
@pytest.mark.parametrize("mode", ["content_type", "redirect", "status"])
async def test_an_engine_out_of_its_mind_is_a_502_with_our_error(mode: str) -> None:
    async with bench(max_losses=2) as b:
        await b.tier("demo")
        engine = await b.replica()
        engine.sim.faults.plan = Fault(mode=mode)  # type: ignore[arg-type]
        async with b.http() as http:
            for body in (chat(), chat(stream=False)):
                async with http.post(CHAT, json=body) as response:
                    assert response.status == 502
                    assert (await response.json())["error"]["code"] == "engine_failed"


@pytest.mark.fault(61)
@pytest.mark.parametrize("mode", ["garbage", "huge_line", "bad_utf8"])
async def test_rubbish_mid_stream_is_not_passed_on(mode: str) -> None:
    async with bench() as b:
        await b.tier("demo")
        first = await b.replica()
        await b.replica()
        async with b.http() as http:
            whole = await stream(http, CHAT, chat())
            first.sim.faults.plan = Fault(mode=mode, after_chunks=5, times=1)  # type: ignore[arg-type]
            with b.preferring(first):
                seen = await stream(http, CHAT, chat())
        assert seen.text == whole.text
        assert seen.done == 1


async def test_a_tier_that_is_not_asked_for_costs_no_write() -> None:
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        async with b.http() as http:
            await stream(http, CHAT, chat())
        assert b.kube.writes == []
        assert (LEASE.kind, NAMESPACE, "demo-demand-gw-test") not in b.kube.objects
