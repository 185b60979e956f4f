"""Several gateway processes: whichever a retry or a resume reaches, it finds its answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web

from spotinference.api.kinds import POD, Json
from spotinference.gateway.app import Running, running
from spotinference.gateway.forward import door
from tests.gateway.test_replay import ask, ended, ids
from tests.support.eventually import eventually
from tests.support.fake_kube import NAMESPACE
from tests.support.gateway import KEY, Bench, bench, chat

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


@dataclass(slots=True)
class Several:
    bench: Bench
    gateways: list[Running]
    sessions: list[aiohttp.ClientSession]
    """a client of each, in the same order"""

    def recordings(self) -> list[int]:
        return [len(gateway.context.replays._by_request) for gateway in self.gateways]


SHAPES = {"replicas": (2, 1), "workers": (1, 2), "replicas of two workers": (2, 2)}
"""Pods, and processes in each."""
shapes = pytest.mark.parametrize("shape", SHAPES)


@contextlib.asynccontextmanager
async def several(shape: str, folder: Path) -> AsyncIterator[Several]:
    """Gateways that know each other, before one engine. A pod's address leads to its first worker,
    as the kernel might deal all connections.
    """
    pods, workers = SHAPES[shape]
    async with (
        bench(tokens_per_s=200, **places(folder, "gw-test", 0, workers)) as b,
        contextlib.AsyncExitStack() as stack,
    ):
        gateways = [b.gateway]
        for number in range(1, pods * workers):
            name = NAMES[number // workers]
            more = places(folder, name, number % workers, workers)
            settings = b.settings.model_copy(update=more)
            gateways.append(await stack.enter_async_context(running(settings, b.kube)))
        await b.tier("demo")
        for number, name in enumerate(NAMES[:pods]):
            b.kube.put(POD, pod(name, gateways[number * workers].http))
        await b.replica()
        await eventually(lambda: all(ready(g, pods) for g in gateways), 5)
        sessions = [
            await stack.enter_async_context(
                aiohttp.ClientSession(g.http, headers={"Authorization": f"Bearer {KEY}"})
            )
            for g in gateways
        ]
        yield Several(b, gateways, sessions)


NAMES = ("gw-test", "gw-other")


def places(folder: Path, name: str, worker: int, workers: int) -> Json:
    """Settings of one process."""
    given: Json = {"id": name, "peers_selector": SELECTOR}
    if workers > 1:
        doors = folder / name
        doors.mkdir(exist_ok=True)
        given |= {"workers": workers, "worker": worker, "doors": doors}
    return given


def ready(gateway: Running, pods: int) -> bool:
    context = gateway.context
    tiers = context.catalogue.of(NAMESPACE)
    return (
        len(context.forward._peers.addresses) == pods
        and len(tiers) == 1
        and any(replica.routable for replica in context.replicas.of(tiers[0].ref))
    )


@shapes
async def test_a_retry_finds_its_answer_wherever_it_arrives(shape: str, tmp_path: Path) -> None:
    async with several(shape, tmp_path) as here:
        body = chat(max_tokens=10, temperature=1)
        for number in range(8):
            first, *others = [
                await ask(session, body, Idempotency_Key=f"k-{number}") for session in here.sessions
            ]
            assert first.status == 200
            for again in others:
                assert again.raw == first.raw
                assert again.headers["x-request-id"] == first.headers["x-request-id"]
                assert again.headers["x-spotinference-joined"] == "true"
        assert sum(here.recordings()) == 8
        assert sum(map(bool, here.recordings())) > 1


@shapes
async def test_a_retry_joins_a_request_that_runs_in_another_process(
    shape: str, tmp_path: Path
) -> None:
    async with several(shape, tmp_path) as here:
        body = chat(max_tokens=60, ignore_eos=True)
        first = asyncio.create_task(ask(here.sessions[0], body, Idempotency_Key="k"))
        await eventually(lambda: sum(here.recordings()) == 1, 5)
        for session in here.sessions[1:]:
            again = await ask(session, body, Idempotency_Key="k")
            assert again.raw == (await first).raw
            assert (again.done, again.clean) == (1, True)
        assert sum(here.recordings()) == 1


@shapes
async def test_a_stream_is_resumed_wherever_its_client_comes_back(
    shape: str, tmp_path: Path
) -> None:
    async with several(shape, tmp_path) as here:
        body = chat(max_tokens=60, ignore_eos=True)
        for origin in here.sessions:
            lost = await ask(origin, body, upto=2500, numbered=True)
            last = ids(lost.raw)[4].decode()
            for session in here.sessions:
                rest = await ask(session, None, Last_Event_ID=last)
                assert rest.status == 200
                assert ended(rest)
                assert ids(rest.raw)[0].endswith(b":6")


@shapes
async def test_a_forwarded_request_counts_once(shape: str, tmp_path: Path) -> None:
    """One usage of the key's limits and one place, in the process that answers."""
    async with several(shape, tmp_path) as here:
        for number in range(8):
            await ask(here.sessions[0], chat(max_tokens=3), Idempotency_Key=f"k-{number}")
        used = [
            sum(
                use.requests.used(g.context.clock.monotonic())
                for use in g.context.limits._uses.values()
            )
            for g in here.gateways
        ]
        assert used == here.recordings()
        assert sum(used) == 8


async def test_a_gateway_that_is_gone_keeps_nothing_and_stops_nobody(tmp_path: Path) -> None:
    async with several("replicas", tmp_path) as here:
        gone = pod("gw-other", "http://127.0.0.1:9")  # nobody listens there
        here.bench.kube.put(POD, gone)
        peers = here.gateways[0].context.forward._peers
        await eventually(lambda: peers.addresses["gw-other"].endswith(":9"), 5)
        await answers_alone(here)


async def test_a_worker_that_is_gone_keeps_nothing_and_stops_nobody(tmp_path: Path) -> None:
    async with several("workers", tmp_path) as here:
        door(tmp_path / "gw-test", 1).unlink()
        await answers_alone(here)


async def answers_alone(here: Several) -> None:
    """The first process, whose peer is gone."""
    for number in range(6):
        seen = await ask(here.sessions[0], chat(max_tokens=3), Idempotency_Key=f"k-{number}")
        assert (seen.status, seen.done) == (200, 1)
    assert here.recordings() == [6, 0]
    seen = await ask(here.sessions[0], None, Last_Event_ID="0" * 32)
    assert seen.status == 404


@shapes
async def test_an_aborted_answer_is_cut_for_who_asked_another_process_too(
    shape: str, tmp_path: Path
) -> None:
    async with several(shape, tmp_path) as here:
        body = chat(max_tokens=800, ignore_eos=True)
        arrived: list[bytes] = []
        forward = here.gateways[0].context.forward
        key = next(f"k-{n}" for n in range(100) if forward._elsewhere(f"key-0\nk-{n}") is not None)
        task = asyncio.create_task(
            ask(here.sessions[0], body, arrived=arrived, Idempotency_Key=key)
        )
        await eventually(lambda: len(arrived) > 3, 5)
        assert here.recordings()[0] == 0
        for gateway in here.gateways[1:]:
            for recording in gateway.context.replays._by_request.values():
                assert recording.task is not None
                recording.task.cancel("the gateway is stopping")
        seen = await task
        assert not seen.clean
        assert seen.done == 0


async def test_a_gateway_that_stops_cuts_what_it_passes_on_and_adds_nothing(
    tmp_path: Path,
) -> None:
    async with several("replicas", tmp_path) as here:
        gateway = here.gateways[0]
        forward = gateway.context.forward
        key = next(f"k-{n}" for n in range(100) if forward._elsewhere(f"key-0\nk-{n}") is not None)
        arrived: list[bytes] = []
        body = chat(max_tokens=800, ignore_eos=True)
        task = asyncio.create_task(
            ask(here.sessions[0], body, arrived=arrived, Idempotency_Key=key)
        )
        await eventually(lambda: len(arrived) > 3, 5)
        await gateway.server.drain(0.05)
        seen = await task
        assert (seen.status, seen.done, seen.clean) == (200, 0, False)
        assert b"HTTP/1" not in seen.raw
        assert b"gateway_stopping" not in seen.raw


async def test_a_client_that_takes_no_end_of_what_is_passed_on_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with several("replicas", tmp_path) as here:
        gateway = here.gateways[0]
        forward = gateway.context.forward
        key = next(f"k-{n}" for n in range(100) if forward._elsewhere(f"key-0\nk-{n}") is not None)
        patient = forward._settings.model_copy(update={"client_write_timeout_s": 0.1})
        monkeypatch.setattr(forward, "_settings", patient)

        async def stuck(*_: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(web.StreamResponse, "write_eof", stuck)
        seen = await asyncio.wait_for(
            ask(here.sessions[0], chat(max_tokens=3), Idempotency_Key=key), 5
        )
        assert not seen.clean
