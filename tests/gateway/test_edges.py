"""Symptoms of defects that a hostile reading of the gateway found; each test was red once."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web

from spotinference.api.kinds import POD, Json
from spotinference.devcluster.simengine.faults import Fault
from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.listener import Listener
from spotinference.gateway.messages import Request
from spotinference.gateway.reply import Reply
from tests.support.eventually import eventually
from tests.support.gateway import (
    CHAT,
    COMPLETION,
    KEY,
    Bench,
    Seen,
    bench,
    chat,
    completion,
    stream,
)


def is_whole(seen: Seen, undisturbed: Seen) -> None:
    assert seen.error is None, seen.error
    assert seen.clean
    assert seen.text == undisturbed.text
    assert seen.finishes == undisturbed.finishes
    assert seen.done == 1
    assert len(seen.identities) == 1


def request_bytes(body: Json) -> bytes:
    raw = orjson.dumps(body)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


async def connect(b: Bench, *, receive_bytes: int | None = None) -> socket.socket:
    """A bare client socket, so that a test decides what is read and how it is closed."""
    client = socket.socket()
    if receive_bytes is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.setblocking(False)
    host, port = b.url.removeprefix("http://").split(":")
    await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
    return client


def value(metric: Any) -> float:
    return float(metric._value.get())


@pytest.mark.parametrize("path", [CHAT, COMPLETION], ids=["chat", "completion"])
async def test_an_empty_chunk_keeps_a_stream_alive_that_waits_for_its_first_byte(
    path: str,
) -> None:
    body = chat() if path == CHAT else completion()
    async with bench(fail_fast_s=0.05, heartbeat_s=0.05, empty_chunk_s=0.1) as b:
        await b.tier("demo")
        async with b.http() as http:
            arrived: list[bytes] = []
            running = asyncio.create_task(stream(http, path, body, arrived=arrived))
            await eventually(lambda: b"".join(arrived).count(b'"choices":[]') >= 2, 5)
            await b.replica()
            seen = await running
            is_whole(seen, await stream(http, path, body))
        assert value(b.gateway.context.metrics.bugs) == 0


@pytest.mark.parametrize("path", [CHAT, COMPLETION], ids=["chat", "completion"])
async def test_an_empty_chunk_keeps_a_stream_alive_that_waits_in_the_middle(path: str) -> None:
    body = chat() if path == CHAT else completion()
    async with bench(fail_fast_s=5, heartbeat_s=0.05, empty_chunk_s=0.1) as b:
        await b.tier("demo")
        lost = await b.replica()
        async with b.http() as http:
            undisturbed = await stream(http, path, body)
            lost.sim.faults.plan = Fault(mode="rst_all", after_chunks=11, times=1)
            arrived: list[bytes] = []
            running = asyncio.create_task(stream(http, path, body, arrived=arrived))
            await eventually(lambda: b.parked() == 1, 5)
            await b.lose_node(lost)
            await eventually(lambda: b"".join(arrived).count(b'"choices":[]') >= 2, 5)
            await b.replica()
            is_whole(await running, undisturbed)
        assert value(b.gateway.context.metrics.bugs) == 0


async def test_streams_that_lost_their_replica_are_not_turned_away_by_a_full_queue() -> None:
    async with bench(heartbeat_s=0.05) as b:
        await b.tier("demo", wake={"maxParked": 1})
        lost = await b.replica(tokens_per_s=100)
        async with b.http() as http:
            undisturbed = await stream(http, CHAT, chat())
            many: list[list[bytes]] = [[] for _ in range(3)]
            running = [
                asyncio.create_task(stream(http, CHAT, chat(), arrived=arrived)) for arrived in many
            ]
            await eventually(lambda: all(len(arrived) > 4 for arrived in many), 5)
            await b.lose_node(lost)
            await eventually(lambda: b.parked() == 3, 5)
            await b.replica()
            for task in running:
                is_whole(await task, undisturbed)


@pytest.mark.fault(59)
async def test_a_client_that_stops_reading_does_not_hold_its_engine_for_ever() -> None:
    async with bench(client_write_timeout_s=0.5) as b:
        await b.tier("demo")
        engine = await b.replica(max_model_len=400_000)
        client = await connect(b, receive_bytes=4096)
        # Large events: what the kernel takes in is full after a few hundred of them.
        endless = chat(max_tokens=390_000, ignore_eos=True, logprobs=True, top_logprobs=20)
        with client:
            await asyncio.get_running_loop().sock_sendall(client, request_bytes(endless))
            await eventually(lambda: engine.sim.engine.unfinished == 1, 60)
            await eventually(lambda: engine.sim.engine.unfinished == 0, 120, "engine is freed")
            await eventually(lambda: not b.gateway.server._running, 60, "request has ended")


async def test_a_pod_that_comes_back_under_another_address_is_reached_there() -> None:
    """A node's reboot gives the same pod (same uid) a new sandbox with another IP."""
    async with bench() as b:
        await b.tier("demo")
        engine = await b.replica(name="demo-0")
        elsewhere = await b.start_engine()
        try:
            await engine.sim.kill()
            b.kube.put(POD, b.pod("demo-0", "demo", engine.sim.port, ready=False))
            moved = b.pod("demo-0", "demo", elsewhere.port)
            b.kube.put(POD, moved)
            await eventually(lambda: b.routable() == ["demo-0"], 5)
            async with b.http() as http:
                seen = await asyncio.wait_for(stream(http, CHAT, chat()), 30)
            assert seen.done == 1
        finally:
            await elsewhere.stop()


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
async def test_a_silent_node_that_leaves_before_its_answer_began_is_left_at_once(
    streamed: bool,
) -> None:
    async with bench() as b:
        await b.tier("demo")
        first, second = await b.replica(), await b.replica()
        first.sim.faults.plan = Fault(mode="hang_headers", times=1)
        async with b.http() as http:
            with b.preferring(first):
                running = asyncio.create_task(http.post(CHAT, json=chat(stream=streamed)))
                await eventually(lambda: len(first.sim.requests) == 1, 5)
            b.kube.drop(POD, first.pod)
            response = await asyncio.wait_for(running, 30)
            assert response.status == 200
            await response.read()
        assert len(second.sim.requests) == 1


@pytest.mark.fault(58)
@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
async def test_json_too_deep_to_be_sent_on_is_400_and_wakes_nobody(streamed: bool) -> None:
    body = orjson.dumps(chat(stream=streamed))
    nested = b"[" * 600 + b"]" * 600
    body = body[:-1] + b',"metadata":' + nested + b"}"
    async with bench() as b:
        await b.tier("demo")
        async with b.http() as http, http.post(CHAT, data=body) as response:
            assert response.status == 400
            assert (await response.json())["error"]["code"] == "invalid_request"
        assert b.kube.writes == []


async def test_time_spent_on_an_answer_is_not_counted_as_waiting_for_a_replica() -> None:
    """A whole answer whose replica dies later than spec.wake.cap still gets its wake."""
    async with bench() as b:
        await b.tier("demo", wake={"cap": "1s", "budget": "1s"})
        lost = await b.replica(tokens_per_s=20)
        async with b.http() as http:
            body = chat(stream=False, max_tokens=200, ignore_eos=True)
            running = asyncio.create_task(http.post(CHAT, json=body))
            await eventually(lambda: lost.sim.engine.unfinished == 1, 5)
            started = asyncio.get_running_loop().time()
            await eventually(lambda: asyncio.get_running_loop().time() - started > 1.2, 5)
            await b.lose_node(lost)
            await eventually(lambda: b.parked() == 1, 0.5, "it waits for another replica")
            await b.replica()
            assert (await running).status == 200


async def test_a_cut_stream_outwaits_full_queues_instead_of_giving_up() -> None:
    async with bench(max_attempts=4) as b:
        await b.tier("demo")
        first, second = await b.replica(), await b.replica()
        async with b.http() as http:
            with b.preferring(second):
                undisturbed = await stream(http, CHAT, chat())
            first.sim.faults.plan = Fault(mode="rst_all", after_chunks=9, times=1)
            second.sim.faults.plan = Fault(mode="status", status=503, times=6)
            with b.preferring(first):
                running = asyncio.create_task(stream(http, CHAT, chat()))
                await eventually(lambda: len(first.sim.requests) == 1, 5)
            await b.lose_node(first)
            is_whole(await asyncio.wait_for(running, 20), undisturbed)


async def test_a_long_replay_is_not_silent() -> None:
    """Verified chunks are dropped; without a sign of life a proxy would cut the client off."""
    body = chat(temperature=0.9, seed=7)
    async with bench(heartbeat_s=0.1) as b:
        await b.tier("demo")
        first, second = await b.replica(), await b.replica(tokens_per_s=50)
        async with b.http() as http:
            with b.preferring(first):
                undisturbed = await stream(http, CHAT, body)
            first.sim.faults.plan = Fault(mode="rst_all", after_chunks=40, times=1)
            with b.preferring(first):
                seen = await stream(http, CHAT, body)
        is_whole(seen, undisturbed)
        assert len(seen.comments) >= 3
        assert len(second.sim.requests) == 1


async def test_a_replica_that_falls_silent_during_a_replay_is_lost_after_the_deadline() -> None:
    body = chat(temperature=0.9, seed=7)
    async with bench(next_byte_timeout_s=0.3) as b:
        await b.tier("demo")
        first, second = await b.replica(), await b.replica()
        async with b.http() as http:
            with b.preferring(first):
                undisturbed = await stream(http, CHAT, body)
            first.sim.faults.plan = Fault(mode="rst_all", after_chunks=30, times=1)
            second.sim.faults.plan = Fault(mode="hang_stream", after_chunks=5, times=1)
            with b.preferring(first):
                seen = await asyncio.wait_for(stream(http, CHAT, body), 10)
        is_whole(seen, undisturbed)


@pytest.mark.fault(60)
async def test_a_client_that_resets_is_not_taken_for_a_lost_replica() -> None:
    async with bench() as b:
        await b.tier("demo")
        engine = await b.replica(max_model_len=400_000)
        loop = asyncio.get_running_loop()
        for _ in range(20):
            client = await connect(b)
            with client:
                body = chat(max_tokens=100_000, ignore_eos=True)
                await loop.sock_sendall(client, request_bytes(body))
                for _ in range(5):
                    assert await loop.sock_recv(client, 4096)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await eventually(lambda: engine.sim.engine.unfinished == 0, 10)
        metrics = b.gateway.context.metrics
        assert value(metrics.interruptions.labels("demo")) == 0


@asynccontextmanager
async def raw_engine(*events: bytes) -> AsyncIterator[int]:
    """The port of an engine that answers every request with these bytes of a stream."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        body = b"".join(events)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.fault(61)
async def test_a_done_without_a_finish_is_no_end_though_something_follows_it() -> None:
    chunk = {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "demo",
        "prompt_token_ids": [1],
        "choices": [{"index": 0, "delta": {"content": "half"}, "token_ids": [2]}],
    }  # fmt: skip
    half = b"data: " + orjson.dumps(chunk) + b"\n\n"
    async with bench(max_losses=1) as b, raw_engine(half, b"data: [DONE]\n\n: ping\n\n") as port:
        await b.tier("demo")
        b.kube.put(POD, b.pod("demo-0", "demo", port))
        await eventually(lambda: b.routable() == ["demo-0"], 5)
        async with b.http() as http:
            seen = await stream(http, CHAT, chat())
        assert seen.error is not None
        assert seen.done == 0
        assert not seen.clean


@pytest.mark.fault(59)
@pytest.mark.parametrize("kind", ["stream", "whole"])
async def test_a_large_answer_that_nobody_takes_is_given_up_at_the_deadline(kind: str) -> None:
    settings = GatewaySettings(client_write_timeout_s=0.2)
    ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    large = b"x" * 16 * 1024 * 1024

    async def handle(http: Request) -> web.StreamResponse:
        reply = Reply(http, settings, "id")
        try:
            if kind == "whole":
                return await reply.send(large)
            await reply.write(large)
            return await reply.finish()
        except BaseException as error:
            ended.set_result(error)
            raise

    runner = web.ServerRunner(Listener(handle, settings))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    _, writer = await asyncio.open_connection(*runner.addresses[0][:2], limit=1024)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert isinstance(await asyncio.wait_for(ended, 30), ConnectionResetError)
    finally:
        writer.close()
        await runner.cleanup()


async def test_an_empty_write_does_not_end_a_stream() -> None:
    async def handle(http: Request) -> web.StreamResponse:
        reply = Reply(http, GatewaySettings(), "id")
        for data in (b"", b"a", b"", b"b"):
            await reply.write(data)
        return await reply.finish()

    runner = web.ServerRunner(Listener(handle, GatewaySettings()))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        raw = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 5)
        assert raw.endswith(b"\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n")
    finally:
        writer.close()
        await runner.cleanup()


async def test_a_mistake_in_writing_demand_is_retried_with_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bench(demand_retry_max_s=1.5) as b:
        now = asyncio.get_running_loop().time
        applied_at: list[float] = []

        async def broken(*_: object) -> Json:
            applied_at.append(now())
            raise RuntimeError("a bug")

        with monkeypatch.context() as patched:
            patched.setattr(b.kube, "apply", broken)
            await b.tier("demo")
            async with b.http() as http:
                waiting = asyncio.create_task(http.post(CHAT, json=chat()))
                await eventually(lambda: len(applied_at) >= 2, 5)
                assert applied_at[1] - applied_at[0] >= 1.4
                patched.undo()
                await eventually(lambda: len(b.kube.leases()) == 1, 5)
                waiting.cancel()
                await eventually(lambda: not b.kube.leases(), 5)
