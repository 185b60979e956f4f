"""Who may wait, how, and in what order those who wait are let go."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from spotinference.api import demand as demand_api
from spotinference.api.keys import ApiKey, KeyFile, digest
from spotinference.api.kinds import POD
from spotinference.core.observed import TierRef
from spotinference.devcluster.simengine.faults import Fault
from spotinference.gateway.app import running
from spotinference.gateway.config import GatewaySettings
from tests.support.eventually import eventually
from tests.support.fake_kube import NAMESPACE
from tests.support.gateway import (
    CHAT,
    COMPLETION,
    KEY,
    OTHER_KEY,
    OTHER_NAMESPACE,
    Bench,
    bench,
    chat,
    completion,
    stream,
)
from tests.support.stalls import stalls

DEMO = TierRef(NAMESPACE, "demo")


def value(metric: Any) -> float:
    return float(metric._value.get())


async def use_key(b: Bench, **fields: Any) -> None:
    """Gives the bench's key these fields; the gateway knows it on return."""
    keys = [
        ApiKey(id="key-0", sha256=digest(KEY), namespace=NAMESPACE, **fields),
        ApiKey(id="key-1", sha256=digest(OTHER_KEY), namespace=OTHER_NAMESPACE),
    ]
    b.keys_file.write_text(KeyFile(keys=keys).text())
    ring = b.gateway.server._keys
    now = b.gateway.context.clock.now()

    def known() -> bool:
        key = ring.authenticate([f"Bearer {KEY}"], lambda: now)
        return all(getattr(key, name) == wanted for name, wanted in fields.items())

    await eventually(known, 5)


# --- bounds --------------------------------------------------------------------------------------


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    ("bound", "settings"),
    [
        ("key", {"max_parked_per_key": 2}),
        ("key_bytes", {"max_parked_bytes_per_key": 300}),
        ("tier_bytes", {"max_parked_bytes_per_tier": 300}),
        ("all", {"max_parked": 2}),
        ("all_bytes", {"max_parked_bytes": 300}),
    ],
)
async def test_every_bound_refuses_the_one_too_many_at_once(
    bound: str, settings: dict[str, int]
) -> None:
    async with bench(**settings) as b:
        await b.tier("demo")
        async with b.http() as http:
            waiting = [asyncio.create_task(http.post(CHAT, json=chat())) for _ in range(2)]
            await eventually(lambda: b.parked() == 2, 5)
            async with http.post(CHAT, json=chat()) as response:
                assert response.status == 429
                assert response.headers["x-should-retry"] == "true"
                assert (await response.json())["error"]["code"] == "parked_full"
            assert value(b.gateway.context.metrics.parked_refused.labels(bound)) == 1
            waiting[0].cancel()
            await eventually(lambda: b.parked() == 1, 5)
            again = asyncio.create_task(http.post(CHAT, json=chat()))
            await eventually(lambda: b.parked() == 2, 5, "a place that was left is taken again")
            for task in (waiting[1], again):
                task.cancel()
            await eventually(lambda: b.parked() == 0, 5)
        assert value(b.gateway.context.metrics.parked_bytes) == 0


async def test_one_keys_bound_is_not_anothers() -> None:
    async with bench(max_parked_per_key=1) as b:
        await b.tier("demo")
        await b.tier("demo", OTHER_NAMESPACE)
        async with b.http() as mine, b.http(OTHER_KEY) as theirs:
            waiting = [
                asyncio.create_task(mine.post(CHAT, json=chat())),
                asyncio.create_task(theirs.post(CHAT, json=chat())),
            ]
            await eventually(lambda: b.gateway.context.parking._count == 2, 5)
            for task in waiting:
                task.cancel()


# --- the order and the pace of the release -------------------------------------------------------


async def test_a_new_replica_gets_no_more_than_it_can_run_and_in_order() -> None:
    async with bench(tokens_per_s=100) as b:
        await b.tier("demo")
        sim = await b.start_engine(max_num_seqs=4)
        async with b.http() as http:
            asked = []
            for number in range(20):
                body = chat(f"request {number}", stream=False, max_tokens=3, ignore_eos=True)
                asked.append(asyncio.create_task(http.post(CHAT, json=body)))
                await eventually(lambda n=number: b.parked() == n + 1, 5)  # type: ignore[misc]
            pod = b.pod("demo-0", "demo", sim.port)
            pod["spec"]["containers"][0]["args"] += ["--max-num-seqs", "4"]
            b.kube.put(POD, pod)
            await eventually(lambda: sim.requests, 5)
            most = 0
            while not all(task.done() for task in asked):
                most = max(most, sim.engine.unfinished)
                await asyncio.sleep(0.001)
            assert {(await task).status for task in asked} == {200}
        assert most <= 4
        order = [r["body"]["messages"][0]["content"] for r in sim.requests]  # type: ignore[index]
        assert order == [f"request {number}" for number in range(20)]
        await sim.stop()


async def test_a_second_replica_takes_those_that_still_wait() -> None:
    async with bench() as b:
        await b.tier("demo")
        async with b.http() as http:
            body = chat(max_tokens=2000, ignore_eos=True)
            waiting = [asyncio.create_task(stream(http, CHAT, body)) for _ in range(4)]
            await eventually(lambda: b.parked() == 4, 5)
            sims = [await b.start_engine(tokens_per_s=20) for _ in range(2)]
            for number, sim in enumerate(sims):
                pod = b.pod(f"demo-{number}", "demo", sim.port)
                pod["spec"]["containers"][0]["args"] += ["--max-num-seqs=2"]
                b.kube.put(POD, pod)
                await eventually(lambda sim=sim: sim.engine.unfinished == 2, 5)  # type: ignore[misc]
            assert b.parked() == 0
            for task in waiting:
                task.cancel()
            for sim in sims:
                await sim.stop()


async def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    async with bench() as b:
        await b.tier("demo")
        sim = await b.start_engine(tokens_per_s=20)
        async with b.http() as http:
            hold = chat("first", max_tokens=2000, ignore_eos=True)
            first = asyncio.create_task(stream(http, CHAT, hold))
            second = asyncio.create_task(stream(http, CHAT, chat("second", max_tokens=2)))
            await eventually(lambda: b.parked() == 2, 5)
            pod = b.pod("demo-0", "demo", sim.port)
            pod["spec"]["containers"][0]["args"] += ["--max-num-seqs=1"]
            b.kube.put(POD, pod)
            await eventually(lambda: len(sim.requests) == 1, 5)
            third = asyncio.create_task(stream(http, CHAT, chat("third", max_tokens=2)))
            await eventually(lambda: b.parked() == 2, 5, "the newcomer waits behind")
            first.cancel()
            assert (await second).done == (await third).done == 1
        order = [r["body"]["messages"][0]["content"] for r in sim.requests]  # type: ignore[index]
        assert order == ["first", "second", "third"]
        await sim.stop()


async def test_a_full_queue_is_waited_for_and_served_in_order() -> None:
    async with bench(busy_wait_s=10) as b:
        await b.tier("demo")
        sim = (await b.replica(tokens_per_s=100, max_num_queued_reqs=1)).sim
        async with b.http() as http:
            asked = []
            for number in range(6):
                body = chat(f"request {number}", max_tokens=5, ignore_eos=True)
                asked.append(asyncio.create_task(stream(http, CHAT, body)))
                await eventually(lambda n=number: b.parked() >= n or asked[0].done(), 5)  # type: ignore[misc,arg-type]
            seen = [await task for task in asked]
        assert {s.status for s in seen} == {200}
        assert {s.done for s in seen} == {1}
        assert b.kube.writes == [], "a full queue wakes nobody"
        answered = [
            r["body"]["messages"][0]["content"]  # type: ignore[index]
            for r in sim.requests
        ]
        last = [max(i for i, c in enumerate(answered) if c == f"request {n}") for n in range(6)]
        assert last == sorted(last)


async def test_a_full_queue_is_a_503_when_no_slot_came_in_time() -> None:
    async with bench(busy_wait_s=0.5) as b:
        await b.tier("demo")
        engine = await b.replica()
        engine.sim.faults.plan = Fault(mode="status", status=503)
        async with b.http() as http:
            for body in (chat(), chat(stream=False)):
                started = time.monotonic()
                async with http.post(CHAT, json=body) as response:
                    assert response.status == 503
                    assert response.headers["Retry-After"] == "1"
                    assert (await response.json())["error"]["code"] == "engine_busy"
                assert time.monotonic() - started >= 0.4
        assert len(engine.sim.requests) < 30, "a full engine is not hammered"


async def test_room_on_replicas_of_another_revision_does_not_make_a_cut_answer_spin() -> None:
    async with bench(heartbeat_s=0.05, busy_retry_s=0.2) as b:
        await b.tier("demo")
        lost = await b.replica(tokens_per_s=100)
        async with b.http() as http:
            undisturbed = await stream(http, CHAT, chat())
            arrived: list[bytes] = []
            cut = asyncio.create_task(stream(http, CHAT, chat(), arrived=arrived))
            await eventually(lambda: len(arrived) > 4, 5)
            full = await b.replica()
            full.sim.faults.plan = Fault(mode="status", status=503)
            await b.replica(model="/cache/weights/another")
            await b.lose_node(lost)
            await eventually(lambda: len(full.sim.requests) >= 4, 5)
            started, asked = time.monotonic(), len(full.sim.requests)
            await eventually(lambda: len(full.sim.requests) >= asked + 4, 10)
            assert time.monotonic() - started >= 0.3
            full.sim.faults.plan = Fault()
            assert (await cut).text == undisturbed.text


# --- how a key waits -----------------------------------------------------------------------------


async def test_a_strict_key_gets_no_status_before_its_answer_or_a_true_504() -> None:
    async with bench(fail_fast_s=0.05, heartbeat_s=0.05) as b:
        await use_key(b, wait="strict")
        await b.tier("demo", wake={"cap": "1s", "budget": "1s"})
        async with b.http() as http:
            started = time.monotonic()
            async with stalls() as late, http.post(CHAT, json=chat()) as response:
                assert response.status == 504
            assert 0.9 < time.monotonic() - started < 1.1 + late.total_s
            waiting = asyncio.create_task(stream(http, CHAT, chat()))
            await eventually(lambda: b.parked() == 1, 5)
            await b.replica()
            seen = await waiting
        assert seen.status == 200
        assert seen.comments == []
        assert "x-spotinference-eta" not in seen.headers


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(("last_s", "retry"), [(90, "true"), (400, "false")])
async def test_a_key_that_does_not_wait_is_told_when_to_come_back_and_wakes_the_tier(
    last_s: int, retry: str, streamed: bool
) -> None:
    async with bench(reject_hold_s=0.5) as b:
        await use_key(b, wait="reject")
        await b.tier("demo", status={"phase": "Asleep", "lastWakeSeconds": last_s})
        async with b.http() as http:
            for _ in range(3):
                async with http.post(CHAT, json=chat(stream=streamed)) as response:
                    assert response.status == 503
                    assert int(response.headers["Retry-After"]) in range(last_s - 1, last_s + 1)
                    assert response.headers["x-should-retry"] == retry
                    assert (await response.json())["error"]["code"] == "model_warming"
            await eventually(b.kube.leases, 5)
            said = demand_api.parse(b.kube.leases()[0])
            assert said is not None
            assert said.parked == 1, "any number of them count as one"
            assert b.parked() == 0
            await b.replica()
            await eventually(lambda: not b.kube.leases(), 5, "withdrawn when a replica is there")
            async with http.post(CHAT, json=chat(stream=streamed)) as response:
                assert response.status == 200


async def test_a_key_that_does_not_wait_keeps_the_tier_awake_for_a_bounded_time() -> None:
    async with bench(reject_hold_s=0.2) as b:
        await use_key(b, wait="reject")
        await b.tier("demo", status={"phase": "Asleep", "lastWakeSeconds": 0})
        async with b.http() as http:
            async with http.post(CHAT, json=chat()) as response:
                assert response.headers["Retry-After"] == "1"
            await eventually(b.kube.leases, 5)
            await eventually(lambda: not b.kube.leases(), 5)


async def test_a_whole_answer_may_be_kept_alive_by_spaces() -> None:
    async with bench(fail_fast_s=0.1, heartbeat_s=0.05) as b:
        await use_key(b, keep_alive=True)
        await b.tier("demo")
        async with b.http() as http:
            waiting = asyncio.create_task(http.post(CHAT, json=chat(stream=False)))
            response = await waiting
            assert (response.status, response.content_type) == (200, "application/json")
            assert await response.content.readany() == b" "
            await b.replica()
            body = await response.json()
            assert body["choices"][0]["message"]["content"]
            async with http.post(CHAT, json=chat(stream=False)) as response:
                raw = await response.read()
                assert raw.startswith(b"{"), "an answer in time is as it always was"


async def test_a_whole_answer_that_was_kept_alive_ends_at_the_cap_with_an_error_and_a_cut() -> None:
    async with bench(fail_fast_s=0.1, heartbeat_s=0.05) as b:
        await use_key(b, keep_alive=True)
        await b.tier("demo", wake={"cap": "1s", "budget": "1s"})
        host, port = b.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = b'{"model":"demo","messages":[{"role":"user","content":"x"}]}'
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        raw = b""
        try:
            async with asyncio.timeout(5):
                while data := await reader.read(65536):
                    raw += data
        except ConnectionResetError:
            pass
        writer.close()
        assert raw.startswith(b"HTTP/1.1 200")
        assert b'"code":"wake_timeout"' in raw
        assert not raw.endswith(b"0\r\n\r\n"), "the body is not ended: no client takes it for one"


async def test_within_the_first_seconds_even_kept_alive_answers_fail_with_a_true_status() -> None:
    async with bench(fail_fast_s=5) as b:
        await use_key(b, keep_alive=True)
        await b.tier("demo", wake={"cap": "1s", "budget": "1s"})
        async with b.http() as http, http.post(CHAT, json=chat(stream=False)) as response:
            assert response.status == 504


# --- streams are told that they wait -------------------------------------------------------------


def test_the_intervals_are_those_that_proxies_and_clients_need() -> None:
    """Proxies cut at 30 to 60 s of silence; LangChain at 120 s without a parsed chunk."""
    settings = GatewaySettings()
    assert settings.fail_fast_s == 10
    assert 10 <= settings.heartbeat_s <= 15
    assert settings.empty_chunk_s <= 60
    assert settings.next_byte_timeout_s + settings.empty_chunk_s / 2 < 120
    assert settings.busy_wait_s < settings.fail_fast_s


@pytest.mark.fault(49)
@pytest.mark.parametrize("path", [CHAT, COMPLETION], ids=["chat", "completion"])
async def test_a_long_prefill_is_no_silence_either(path: str) -> None:
    body = chat() if path == CHAT else completion()
    async with bench(fail_fast_s=0.1, heartbeat_s=0.05, empty_chunk_s=0.2) as b:
        await b.tier("demo")
        await b.replica(prefill_tokens_per_s=20)
        async with b.http() as http:
            seen = await stream(http, path, body)
        assert seen.status == 200
        assert len(seen.comments) >= 3
        assert any(chunk.get("choices") == [] for chunk in seen.chunks)
        assert seen.done == 1
        assert len(seen.identities) == 1
        assert seen.error is None


async def test_an_engine_that_refuses_after_a_heartbeat_is_an_error_event() -> None:
    async with bench(fail_fast_s=0.05, heartbeat_s=0.05, max_losses=0) as b:
        await b.tier("demo")
        engine = await b.replica(prefill_tokens_per_s=100)
        engine.sim.faults.plan = Fault(mode="error_event")
        async with b.http() as http:
            seen = await stream(http, CHAT, chat())
        assert seen.status == 200
        assert seen.error is not None
        assert not seen.clean


# --- pauses --------------------------------------------------------------------------------------


async def test_a_pause_spares_answers_that_have_begun() -> None:
    async with bench(heartbeat_s=0.05) as b:
        await b.tier("demo")
        lost = await b.replica(tokens_per_s=100)
        async with b.http() as http:
            undisturbed = await stream(http, CHAT, chat())
            arrived: list[bytes] = []
            running_ = asyncio.create_task(stream(http, CHAT, chat(), arrived=arrived))
            await eventually(lambda: len(arrived) > 4, 5)
            await b.lose_node(lost)
            await eventually(lambda: b.parked() == 1, 5)
            await b.tier("demo", paused=True)
            await eventually(lambda: b": paused" in b"".join(arrived), 5, "and says so")
            await b.tier("demo", paused=False)
            await b.replica()
            seen = await running_
        assert seen.text == undisturbed.text
        assert seen.done == 1


async def test_a_pause_to_the_cap_is_told_as_a_pause() -> None:
    async with bench(heartbeat_s=0.05) as b:
        await b.tier("demo", wake={"cap": "1s", "budget": "1s"})
        lost = await b.replica(tokens_per_s=100)
        async with b.http() as http:
            arrived: list[bytes] = []
            running_ = asyncio.create_task(stream(http, CHAT, chat(), arrived=arrived))
            await eventually(lambda: len(arrived) > 4, 5)
            await b.lose_node(lost)
            await eventually(lambda: b.parked() == 1, 5)
            await b.tier("demo", wake={"cap": "1s", "budget": "1s"}, paused=True)
            seen = await running_
        assert seen.error is not None
        assert seen.error["code"] == "tier_paused"
        assert not seen.clean


# --- who wakes a GPU -----------------------------------------------------------------------------

HEADERS = {"Content-Type": "application/json"}
NOBODYS: list[tuple[str, str, str | None, bytes | None, int]] = [
    ("no key", "POST", None, None, 401),
    ("an unknown key", "POST", "sk-spot-unknown", None, 401),
    ("another tenant", "POST", OTHER_KEY, None, 404),
    ("HEAD", "HEAD", KEY, None, 404),
    ("OPTIONS", "OPTIONS", KEY, None, 404),
    ("GET", "GET", KEY, None, 404),
    ("no JSON", "POST", KEY, b"{", 400),
    ("no object", "POST", KEY, b"[]", 400),
    ("no model", "POST", KEY, b'{"messages":[{"role":"user","content":"x"}]}', 400),
    ("no messages", "POST", KEY, b'{"model":"demo"}', 400),
    ("empty messages", "POST", KEY, b'{"model":"demo","messages":[]}', 400),
    ("no role", "POST", KEY, b'{"model":"demo","messages":[{"content":"x"}]}', 400),
    ("a wrong field", "POST", KEY, b'{"model":"demo","messages":[{"role":"user"}],"n":0}', 400),
    ("another model", "POST", KEY, b'{"model":"x","messages":[{"role":"user"}]}', 404),
    ("too much", "POST", KEY, b" " * 2000, 413),
]


@pytest.mark.fault(68)
@pytest.mark.parametrize(
    ("method", "key", "body", "status"), [row[1:] for row in NOBODYS], ids=[r[0] for r in NOBODYS]
)
async def test_nobody_wakes_a_gpu_who_may_not(
    method: str, key: str | None, body: bytes | None, status: int
) -> None:
    async with bench(max_body_bytes=1000) as b:
        await b.tier("demo")
        whole = b'{"model":"demo","messages":[{"role":"user","content":"x"}]}'
        async with b.http(key) as http:
            data = whole if body is None else body
            async with http.request(method, CHAT, data=data, headers=HEADERS) as response:
                assert response.status == status
        assert b.parked() == 0
        assert b.gateway.context.parking.wanted(DEMO) == 0
        assert b.kube.writes == []


@pytest.mark.fault(60)
async def test_two_gateways_ask_and_withdraw_each_for_themselves() -> None:
    async with bench() as b:
        await b.tier("demo")
        other_settings = b.settings.model_copy(update={"id": "gw-other"})
        async with running(other_settings, b.kube) as other, b.http() as http:
            await eventually(lambda: other.server._ready() is None, 5)
            mine = asyncio.create_task(http.post(CHAT, json=chat()))
            theirs = asyncio.create_task(http.post(f"{other.http}{CHAT}", json=chat()))
            await eventually(lambda: len(b.kube.leases()) == 2, 5)
            mine.cancel()
            await eventually(lambda: len(b.kube.leases()) == 1, 5)
            assert b.kube.leases()[0]["spec"]["holderIdentity"] == "gw-other"
            theirs.cancel()
            await eventually(lambda: not b.kube.leases(), 5, "the last one calls the wake off")
