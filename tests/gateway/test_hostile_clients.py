"""Clients that do not read, leave, borrow keys, hide routes or inject, and a gateway told to stop."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import aiohttp
import orjson
import pytest
import structlog
from structlog.testing import capture_logs

from spotinference.clients.engine_http import MAX_BUFFERED_BYTES
from spotinference.core.observed import TierRef
from tests.gateway.raw_table import head, post
from tests.gateway.test_hostile_http import address
from tests.support import raw_http
from tests.support.eventually import eventually
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
from tests.support.scripted import Call, join, scripted, token

SOCKET_BYTES = 4096
KERNEL_BYTES = 64 * 1024 * 1024
"""What two sockets in a row may hold at most, by the kernel's own settings."""
READ_BYTES = 256 * 1024
"""asyncio's and uvloop's, of one turn."""
GATEWAY_BYTES = MAX_BUFFERED_BYTES + 3 * READ_BYTES
"""What the gateway itself holds of one answer: the bound, and reads on either side of it."""


# --- slow readers ----------------------------------------------------------------------------------


@pytest.mark.fault(59)
async def test_a_client_that_does_not_read_makes_the_engine_wait() -> None:
    """What the engine could write and the client has not read is bounded, whatever the answer."""
    text = "y" * 8192
    written = 0

    async def endless(call: Call) -> None:
        nonlocal written
        await call.begin()
        number = 0
        while True:
            await call.send(token(number, text=text))
            number += 1
            written += len(text)

    async with bench() as b, scripted(endless) as port:
        await b.tier("demo")
        await join(b, port)
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
            client.setblocking(False)
            await loop.sock_connect(client, address(b))
            await loop.sock_sendall(client, post(content=orjson.dumps(chat(max_tokens=4000))))
            held = await _standing_still(lambda: written if _held_by(b) else 0)
            assert 0 < held <= KERNEL_BYTES
            assert 0 < _held_by(b) <= GATEWAY_BYTES
            read = 0
            while read < 2 * held:  # it reads again, and the answer goes on
                read += len(await asyncio.wait_for(loop.sock_recv(client, 65536), 30))
            assert written > held


def _held_by(b: Bench) -> int:
    """Bytes of answers in the gateway's own buffers."""
    clients = [connection.transport for connection in b.gateway.front.connections]
    unsent: int = sum(t.get_write_buffer_size() for t in clients if t is not None)
    return unsent + sum(answer._buffered for answer in b.gateway.context.engines._pool._all)


async def _standing_still(count: Callable[[], int]) -> int:
    """The count once it does not grow any more."""
    last = -1

    def still() -> bool:
        nonlocal last
        now = count()
        same = now == last and now > 0
        last = now
        return same

    await eventually(still, 10, "the engine waits")
    return last


@pytest.mark.fault(59)
async def test_streams_that_are_read_go_on_beside_those_that_are_not() -> None:
    async with bench(tokens_per_s=200) as b:
        await b.tier("demo")
        engine = await b.replica(max_model_len=400_000)
        undisturbed: list[bytes] = []
        loop = asyncio.get_running_loop()
        slow = [socket.socket() for _ in range(20)]
        endless = orjson.dumps(chat(max_tokens=100_000, ignore_eos=True))
        try:
            for client in slow:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
                client.setblocking(False)
                await loop.sock_connect(client, address(b))
                await loop.sock_sendall(client, post(content=endless))
            await eventually(lambda: engine.sim.engine.unfinished == len(slow), 10)
            async with b.http() as http:
                seen = await asyncio.wait_for(stream(http, CHAT, chat(), arrived=undisturbed), 20)
                assert seen.done == 1
                assert seen.clean
        finally:
            for client in slow:
                client.close()
        await eventually(lambda: engine.sim.engine.unfinished == 0, 10, "the engine is freed")


# --- keys and tenants --------------------------------------------------------------------------------

WRONG_KEYS = {
    "none": [],
    "empty": ["Authorization:"],
    "scheme-only": ["Authorization: Bearer"],
    "two": [f"Authorization: Bearer {KEY}", f"Authorization: Bearer {KEY}"],
    "two-in-one": [f"Authorization: Bearer {KEY}, Bearer {KEY}"],
    "another-scheme": [f"Authorization: Basic {KEY}"],
    "small-scheme": [f"Authorization: bearer {KEY}"],
    "two-spaces": [f"Authorization: Bearer  {KEY}"],
    "tab": [f"Authorization: Bearer\t{KEY}"],
    "quoted": [f'Authorization: Bearer "{KEY}"'],
    "upper-case": [f"Authorization: Bearer {KEY.upper()}"],
    "a-prefix": [f"Authorization: Bearer {KEY[:-1]}"],
    "longer": [f"Authorization: Bearer {KEY}x"],
    "look-alike": [f"Authorization: Bearer {KEY.replace('e', chr(0x435))}"],
    "full-width": ["Authorization: Bearer " + chr(0xFF53) + KEY[1:]],
    "sql": ["Authorization: Bearer ' OR '1'='1' --"],
    "nosql": ['Authorization: Bearer {"$ne": null}'],
    "ldap": ["Authorization: Bearer *)(uid=*))(|(uid=*"],
    "percent": [f"Authorization: Bearer {KEY}%00"],
    "8-kib": ["Authorization: Bearer " + "x" * 8000],
    "in-another-header": [f"X-Api-Key: {KEY}", f"api-key: {KEY}"],
    "in-a-cookie": [f"Cookie: Authorization=Bearer {KEY}"],
    "proxy": [f"Proxy-Authorization: Bearer {KEY}"],
}


@pytest.mark.fault(63, 68)
async def test_every_wrong_key_is_the_same_401_and_wakes_nobody() -> None:
    async with bench() as b:
        await b.tier("demo")
        answers = set()
        for name, lines in WRONG_KEYS.items():
            for target in (CHAT, f"{CHAT}?api_key={KEY}", COMPLETION):
                raw = await raw_http.talk(
                    address(b), post("Connection: close", *lines, key=None, target=target)
                )
                (answer,) = raw_http.parse(raw)
                assert answer.status == 401, name
                answers.add(answer.body)
        assert len(answers) == 1, "no oracle: what is wrong with a key is not told"
        assert b.kube.writes == []


@pytest.mark.fault(63)
async def test_a_key_of_a_mebibyte_is_refused_before_it_is_whole() -> None:
    async with bench() as b:
        raw = await raw_http.talk(address(b), post(key="x" * 1024 * 1024))
        assert [answer.status for answer in raw_http.parse(raw)] == [400]


FOREIGN = [
    "demo", "other/demo", f"{OTHER_NAMESPACE}/demo", "../other/demo", "other.demo", "demo\x00",
    "Demo", " demo", "demo ", "demo%00", "*", "", "demo,demo", "d" * 257,
]  # fmt: skip


@pytest.mark.fault(64, 68)
async def test_another_tenants_tier_is_no_tier_whatever_it_is_called() -> None:
    async with bench() as b:
        await b.tier("demo", OTHER_NAMESPACE)
        async with b.http(KEY) as mine, b.http(OTHER_KEY) as theirs:
            for model in [*FOREIGN, ["demo"], {"name": "demo"}, 1, None, True]:
                headers = {"X-Tenant": OTHER_NAMESPACE, "X-Namespace": OTHER_NAMESPACE}
                async with mine.post(
                    f"{CHAT}?model=demo", json=chat(model=model), headers=headers
                ) as response:
                    assert response.status in {400, 404}, model
                    error = (await response.json())["error"]
                    assert error["code"] in {"model_not_found", "invalid_request"}
            async with mine.get("/v1/models") as response:
                assert (await response.json())["data"] == []
            async with theirs.get("/v1/models") as response:
                assert [m["id"] for m in (await response.json())["data"]] == ["demo"]
        assert b.kube.writes == []


@pytest.mark.fault(65)
async def test_routing_fields_in_body_and_headers_change_nothing() -> None:
    """They go to the engine as the client's own fields, or not at all; the way stays the same."""
    reached: list[bytes] = []

    async def trap(call: Call) -> None:
        reached.append(call.head)

    async with bench() as b, scripted(trap) as port:
        await b.tier("demo")
        engine = await b.replica()
        elsewhere = f"http://127.0.0.1:{port}"
        hidden: dict[str, Any] = dict.fromkeys(
            ("api_base", "base_url", "api_key", "endpoint", "proxy", "custom_llm_provider"),
            elsewhere,
        )
        hidden |= {"extra_headers": {"Host": elsewhere}, "extra_body": {"model": "x"}, "tier": "x"}
        headers = {
            "X-Forwarded-Host": f"127.0.0.1:{port}", "Forwarded": f"host=127.0.0.1:{port}",
            "X-Original-URL": elsewhere, "X-Tier": "x", "X-Spotinference-Replica": elsewhere,
            "X-Spotinference-Hops": "0", "Host": f"127.0.0.1:{port}", "Destination": elsewhere,
        }  # fmt: skip
        async with (
            b.http() as http,
            http.post(CHAT, json=chat(stream=False) | hidden, headers=headers) as response,
        ):
            assert response.status == 200
            answered = {name.lower() for name in response.headers}
        assert reached == []
        sent = engine.sim.requests[-1]["headers"]
        assert isinstance(sent, dict)
        passed_on = {name.lower() for name in sent}
        assert not passed_on & {name.lower() for name in headers if name != "Host"}
        assert not passed_on & {"authorization", "cookie"}
        assert KEY not in json.dumps(sent)
        assert "x-sim-engine" not in answered


# --- paths that are not for clients -----------------------------------------------------------------


@pytest.mark.fault(66, 68)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_the_engines_own_paths_are_not_there(method: str) -> None:
    paths = (
        "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/shutdown", "/sleep", "/wake_up",
        "/is_sleeping", "/reset_prefix_cache", "/reset_mm_cache", "/collective_rpc", "/server_info",
        "/start_profile", "/stop_profile", "/pause", "/resume", "/scale_elastic_ep", "/ping",
        "/invocations", "/inference/v1/generate", "/v1/chat/completions/render", "/docs",
        "/openapi.json", "/v1/chat/completions/derender", "/load", "/version", "/admin", "/",
        "/v1", "/v1/", "/.env", "/v1/models/../../metrics", "/v1/chat/completions/..", "/%2e%2e/",
    )  # fmt: skip
    async with bench() as b:
        await b.tier("demo")
        engine = await b.replica()
        for path in paths:
            payload = post(target=path, method=method)
            assert (await raw_http.exchange(address(b), payload)).statuses == (404,), path
        assert engine.sim.requests == type(engine.sim.requests)()
        await b.lose_node(engine)
        for path in paths:
            await raw_http.exchange(address(b), post(target=path, method=method))
        assert b.kube.writes == []


# --- clients that leave -----------------------------------------------------------------------------


@pytest.mark.fault(60)
@pytest.mark.parametrize("path", [CHAT, COMPLETION], ids=["chat", "completion"])
@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
async def test_whoever_leaves_frees_the_engine_and_the_place(path: str, streamed: bool) -> None:
    make = chat if path == CHAT else completion
    async with bench(tokens_per_s=50) as b:
        await b.tier("demo")
        engine = await b.replica(max_model_len=400_000)
        endless = make(max_tokens=100_000, ignore_eos=True, stream=streamed)
        async with b.http() as http:
            asked = [asyncio.create_task(_read(http, path, endless)) for _ in range(5)]
            await eventually(lambda: engine.sim.engine.unfinished == 5, 5)
            for task in asked:
                task.cancel()
            await asyncio.wait(asked)
            await eventually(lambda: engine.sim.engine.unfinished == 0, 5)
        await eventually(lambda: not b.gateway.server._running, 5)
        replica = next(iter(b.gateway.context.replicas.of(TierRef("default", "demo"))))
        assert replica.outstanding == 0


async def _read(http: aiohttp.ClientSession, path: str, body: Any) -> None:
    async with http.post(path, json=body) as response:
        await response.read()


# --- the end ------------------------------------------------------------------------------------------


@pytest.mark.fault(69)
async def test_a_gateway_told_to_stop_with_a_hundred_streams_cuts_none_in_silence() -> None:
    async with bench(tokens_per_s=100, drain_s=1.0) as b:
        await b.tier("demo")
        await b.replica(max_model_len=400_000)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            b.url, headers={"Authorization": f"Bearer {KEY}"}, connector=connector
        ) as http:
            many: list[list[bytes]] = [[] for _ in range(100)]
            running = [
                asyncio.create_task(
                    stream(
                        http,
                        CHAT,
                        chat(max_tokens=20 if number % 2 else 50_000, ignore_eos=True),
                        arrived=arrived,
                    )
                )
                for number, arrived in enumerate(many)
            ]
            await eventually(lambda: all(many), 15, "all have begun")
            b.gateway.server.stopping = True
            async with http.get(f"{b.gateway.metrics_url}/readyz") as response:
                assert response.status == 503
            await b.gateway.server.drain(1.0)
            seen = await asyncio.wait_for(asyncio.gather(*running), 15)
        for number, one in enumerate(seen):
            if number % 2:
                assert one.done == 1
                assert one.clean
            else:
                assert one.done == 0
                assert not one.clean
                assert one.error is not None
                assert one.error["code"] == "gateway_stopping"


# --- injection -----------------------------------------------------------------------------------------


@pytest.mark.fault(70)
async def test_names_from_clients_become_neither_labels_nor_lines() -> None:
    evil = 'x\n{"event":"forged","level":"info"}\r\n\x1b[31mred'
    with capture_logs() as records:
        shown = await _metrics_after(evil)
    render = structlog.processors.JSONRenderer()
    for record in records:
        line = render(None, "", record)
        assert isinstance(line, str)
        assert "\n" not in line
        assert "\x1b" not in line
        assert record["event"] != "forged"
    assert "forged" not in shown
    assert "\x1b" not in shown
    requests = [line for line in shown.splitlines() if "gateway_requests_total{" in line]
    assert len(requests) < 10


async def _metrics_after(evil: str) -> str:
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        async with b.http() as http:
            for number in range(50):
                body = chat(model=f"{evil}{number}", user=evil)
                async with http.post(CHAT, json=body) as response:
                    assert response.status == 404
            async with http.post(CHAT, json=chat(user=evil, stream=False)) as response:
                assert response.status == 200
        for payload in (head(f"X: {evil}"), post(target=f"/v1/{evil}")):
            await raw_http.talk(address(b), payload + raw_http.SENTINEL)
        return b.gateway.context.metrics.render().decode()
