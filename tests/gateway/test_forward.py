"""Two gateway replicas: whichever a retry or a resume reaches, it finds its answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import aiohttp
import pytest

from spotinference.api.kinds import POD, Json
from spotinference.gateway.app import Running, running
from tests.gateway.test_replay import ask, ended, ids
from tests.support.eventually import eventually
from tests.support.gateway import KEY, NAMESPACE, Bench, bench, chat

SELECTOR = "app.kubernetes.io/component=gateway"


def pod(name: str, url: str) -> Json:
    return {
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": f"uid-{name}",
            "labels": {"app.kubernetes.io/component": "gateway"},
        },
        "spec": {
            "nodeName": "n",
            "containers": [{"ports": [{"name": "http", "containerPort": urlsplit(url).port}]}],
        },
        "status": {
            "phase": "Running",
            "podIP": "127.0.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


@contextlib.asynccontextmanager
async def two() -> AsyncIterator[tuple[Bench, list[Running], list[aiohttp.ClientSession]]]:
    """Two gateways that know each other, one engine, a client for each gateway."""
    async with bench(tokens_per_s=200, peers_selector=SELECTOR) as b:
        second = b.settings.model_copy(update={"id": "gw-other"})
        async with running(second, b.kube) as other, contextlib.AsyncExitStack() as stack:
            await b.tier("demo")
            gateways = [b.gateway, other]
            for name, gateway in zip(("gw-test", "gw-other"), gateways, strict=True):
                b.kube.put(POD, pod(name, gateway.http))
            await b.replica()
            await eventually(lambda: all(knows_both(g) for g in gateways), 5)
            sessions = [
                await stack.enter_async_context(
                    aiohttp.ClientSession(g.http, headers={"Authorization": f"Bearer {KEY}"})
                )
                for g in gateways
            ]
            yield b, gateways, sessions


def knows_both(gateway: Running) -> bool:
    context = gateway.context
    tiers = context.catalogue.of(NAMESPACE)
    return (
        len(context.forward._peers.addresses) == 2
        and len(tiers) == 1
        and any(replica.routable for replica in context.replicas.of(tiers[0].ref))
    )


def recordings(gateways: list[Running]) -> list[int]:
    return [len(gateway.context.replays._by_request) for gateway in gateways]


async def test_a_retry_finds_its_answer_on_either_gateway() -> None:
    async with two() as (_, gateways, sessions):
        body = chat(max_tokens=10, temperature=1)
        for number in range(6):
            first = await ask(sessions[0], body, Idempotency_Key=f"k-{number}")
            again = await ask(sessions[1], body, Idempotency_Key=f"k-{number}")
            assert first.status == again.status == 200
            assert first.raw == again.raw
            assert first.headers["x-request-id"] == again.headers["x-request-id"]
        assert sum(recordings(gateways)) == 6


async def test_a_retry_joins_a_request_that_runs_on_the_other_gateway() -> None:
    async with two() as (_, gateways, sessions):
        body = chat(max_tokens=60, ignore_eos=True)
        first = asyncio.create_task(ask(sessions[0], body, Idempotency_Key="k"))
        await eventually(lambda: sum(recordings(gateways)) == 1, 5)
        second = await ask(sessions[1], body, Idempotency_Key="k")
        assert second.raw == (await first).raw
        assert second.done == 1
        assert second.clean
        assert sum(recordings(gateways)) == 1


@pytest.mark.parametrize("origin", [0, 1])
async def test_a_stream_is_resumed_on_either_gateway(origin: int) -> None:
    async with two() as (_, _, sessions):
        body = chat(max_tokens=60, ignore_eos=True)
        lost = await ask(sessions[origin], body, upto=2500, numbered=True)
        last = ids(lost.raw)[4].decode()
        for session in sessions:
            rest = await ask(session, None, Last_Event_ID=last)
            assert rest.status == 200
            assert ended(rest)
            assert ids(rest.raw)[0].endswith(b":6")


async def test_a_gateway_that_is_gone_keeps_nothing_and_stops_nobody() -> None:
    async with two() as (b, gateways, sessions):
        gone = pod("gw-other", "http://127.0.0.1:9")  # nobody listens there
        b.kube.put(POD, gone)
        peers = gateways[0].context.forward._peers
        await eventually(lambda: peers.addresses["gw-other"].endswith(":9"), 5)
        for number in range(6):
            seen = await ask(sessions[0], chat(max_tokens=3), Idempotency_Key=f"k-{number}")
            assert seen.status == 200
            assert seen.done == 1
        assert recordings(gateways) == [6, 0]
        seen = await ask(sessions[0], None, Last_Event_ID="0" * 32)
        assert seen.status == 404


async def test_an_aborted_answer_is_cut_for_who_asked_the_other_gateway_too() -> None:
    async with two() as (b, gateways, sessions):
        body = chat(max_tokens=800, ignore_eos=True)
        arrived: list[bytes] = []
        here, there = 0, 1
        key = next(
            f"k-{n}"
            for n in range(100)
            if gateways[here].context.forward._elsewhere(f"key-0\nk-{n}") is not None
        )
        task = asyncio.create_task(ask(sessions[here], body, arrived=arrived, Idempotency_Key=key))
        await eventually(lambda: len(arrived) > 3, 5)
        assert recordings(gateways)[there] == 1
        for recording in gateways[there].context.replays._by_request.values():
            assert recording.task is not None
            recording.task.cancel("the gateway is stopping")
        seen = await task
        assert not seen.clean
        assert seen.done == 0
        assert b.url
