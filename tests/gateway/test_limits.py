"""Limits of keys: who is above one waits for nothing, wakes nothing, and is told when to return."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from datetime import UTC, datetime
from typing import Any

import aiohttp
import openai
import pytest

from spotinference import errors
from spotinference.api.kinds import POD, Json, Kind
from spotinference.core.limits import Processes
from spotinference.gateway.budgets import NAME, Budgets
from spotinference.gateway.peers import Peers
from tests.gateway.test_keys import rekey
from tests.support.eventually import eventually
from tests.support.fake_kube import NAMESPACE
from tests.support.gateway import CHAT, Bench, bench, chat


@contextlib.asynccontextmanager
async def limited(**fields: object) -> Any:
    """A gateway with one replica, and a client whose key has these limits."""
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        await rekey(b, **fields)
        async with b.http() as session:
            yield b, session


async def ask(session: aiohttp.ClientSession, **more: Any) -> tuple[int, Any, Json]:
    async with session.post(CHAT, json=chat(stream=False, **more)) as response:
        return response.status, response.headers, await response.json()


def use(b: Bench) -> Any:
    return b.gateway.context.limits._uses["k"]


@pytest.mark.fault(67)
async def test_the_request_above_the_limit_is_refused_and_told_when_to_return() -> None:
    async with limited(requests_per_minute=2) as (_, session):
        seen = [await ask(session, max_tokens=1) for _ in range(3)]
        assert [status for status, _, _ in seen] == [200, 200, 429]
        assert [h["x-ratelimit-remaining-requests"] for _, h, _ in seen] == ["1", "0", "0"]
        _, headers, body = seen[2]
        assert body["error"]["code"] == "rate_limit_exceeded"
        assert "requests_per_minute is 2" in body["error"]["message"]
        assert headers["x-should-retry"] == "true"
        assert 55 <= int(headers["Retry-After"]) <= 61
        assert headers["x-ratelimit-limit-requests"] == "2"
        assert headers["x-ratelimit-reset-requests"].endswith("s")
        assert "x-ratelimit-limit-tokens" not in headers


@pytest.mark.fault(67)
async def test_requests_that_come_at_once_do_not_slip_past_a_limit() -> None:
    async with limited(requests_per_minute=5) as (_, session):
        seen = await asyncio.gather(*(ask(session, max_tokens=1) for _ in range(30)))
        assert sorted(status for status, _, _ in seen) == [200] * 5 + [429] * 25


async def test_the_openai_client_waits_for_a_limit_and_not_for_a_budget() -> None:
    async with limited(monthly_tokens=5) as (b, _):
        async with b.openai() as client:
            await client.chat.completions.create(**chat(stream=False))
            with pytest.raises(openai.RateLimitError, match="of this month") as refused:
                await client.chat.completions.create(**chat(stream=False))
        assert refused.value.code == "budget_exceeded"
        counted = b.gateway.context.metrics.limited.labels("budget")
        assert counted._value.get() == 1  # it was not tried again


async def test_streams_and_lists_carry_the_limits_too() -> None:
    async with limited(requests_per_minute=10, tokens_per_minute=5000) as (_, session):
        async with session.post(CHAT, json=chat(max_tokens=5)) as response:
            assert response.headers["x-ratelimit-remaining-requests"] == "9"
            assert 0 < int(response.headers["x-ratelimit-remaining-tokens"]) < 5000
            await response.read()
        async with session.get("/v1/models") as response:
            assert response.headers["x-ratelimit-remaining-requests"] == "9"
        async with session.post(CHAT, json=chat(model="none")) as response:
            assert response.status == 404
            assert response.headers["x-ratelimit-remaining-requests"] == "9"


@pytest.mark.parametrize("stream", [True, False])
async def test_tokens_are_reserved_by_estimate_and_settled_by_use(*, stream: bool) -> None:
    async with limited(tokens_per_minute=5000) as (b, session):
        async with session.post(
            CHAT, json=chat(max_tokens=7, stream=stream, ignore_eos=True)
        ) as response:
            left = 5000 - int(response.headers["x-ratelimit-remaining-tokens"])
            assert left > 7
            answer = await response.read()
        await eventually(lambda: use(b).streams == 0, 5)
        used = use(b).tokens._sum
        if not stream:
            assert used == json.loads(answer)["usage"]["total_tokens"]
        assert used > 7
        assert use(b).reserved == 0
        status, _, body = await ask(session, max_tokens=5000)  # more than ever fits: when alone
        assert status == 429
        assert "tokens_per_minute is 5000" in body["error"]["message"]


@pytest.mark.fault(67, 68)
async def test_nobody_above_a_limit_wakes_a_gpu() -> None:
    async with bench() as b:
        await b.tier("demo")
        await rekey(b, max_streams=1)
        async with b.http() as session:
            waiting = asyncio.create_task(session.post(CHAT, json=chat(stream=False)))
            await eventually(lambda: b.parked() == 1, 5)
            writes = len(b.kube.writes)
            status, headers, body = await ask(session)
            assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
            assert int(headers["Retry-After"]) == 1
            assert b.parked() == 1
            assert len(b.kube.writes) == writes
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
            await eventually(lambda: use(b).streams == 0, 5, "a client that left frees its place")


async def test_a_limit_beyond_the_context_window_blocks_nothing_else() -> None:
    async with bench() as b:
        await b.tier("demo", engine={"maxModelLen": 2048})
        await rekey(b, monthly_tokens=1_000_000)
        async with b.http() as session:
            waiting = asyncio.create_task(session.post(CHAT, json=chat(max_tokens=10**9)))
            await eventually(lambda: b.parked() == 1, 5)
            assert use(b).reserved < 10_000
            await b.replica()
            assert (await ask(session, max_tokens=1))[0] == 200
            async with await waiting as refused:
                assert (await refused.json())["error"]["param"] == "max_tokens"


@pytest.mark.fault(67)
async def test_a_spent_budget_is_final_until_the_month_turns() -> None:
    async with limited(monthly_tokens=20) as (b, session):
        status, _, first = await ask(session, max_tokens=30, ignore_eos=True)
        assert status == 200
        assert first["usage"]["total_tokens"] > 20
        status, headers, body = await ask(session)
        assert (status, body["error"]["code"]) == (429, "budget_exceeded")
        assert body["error"]["type"] == "insufficient_quota"
        assert headers["x-should-retry"] == "false"
        month = int(headers["Retry-After"])  # no SDK waits so long; a person reads it
        assert 0 < month <= 31 * 86400
        assert "ends at 20" in body["error"]["message"]
        b.gateway.context.limits._budgets._month = "2000-01"
        assert (await ask(session, max_tokens=1))[0] == 200


# --- budgets over several gateways ---------------------------------------------------------------


class Clock:
    at = datetime(2026, 11, 21, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return 1000.0


class OneConfigMap:
    """Honours resourceVersion; may lose the answer to a write that it made."""

    def __init__(self) -> None:
        self.body: Json | None = None
        self.lose_answers = 0
        self._versions = itertools.count(1)

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Json:
        await asyncio.sleep(0)
        if self.body is None:
            raise errors.NotFound(name)
        return json.loads(json.dumps(self.body))  # type: ignore[no-any-return]

    async def create(self, kind: Kind, body: Json) -> Json:
        await asyncio.sleep(0)
        if self.body is not None:
            raise errors.Conflict("taken")
        return self._store(body)

    async def merge_patch(self, kind: Kind, name: str, namespace: str | None, patch: Json) -> Json:
        await asyncio.sleep(0)
        assert self.body is not None
        if patch["metadata"]["resourceVersion"] != self.body["metadata"]["resourceVersion"]:
            raise errors.Conflict("written meanwhile")
        data = {k: v for k, v in (self.body["data"] | patch["data"]).items() if v is not None}
        return self._store(self.body | {"data": data})

    def _store(self, body: Json) -> Json:
        meta = body["metadata"] | {"resourceVersion": str(next(self._versions))}
        self.body = body | {"metadata": meta}
        if self.lose_answers > 0:
            self.lose_answers -= 1
            raise errors.ApiUnavailable("the answer was lost")
        return self.body


@pytest.mark.fault(67)
async def test_gateways_sum_up_what_a_key_used() -> None:
    store = OneConfigMap()
    gateways = [Budgets(Clock(), f"gw-{n}", store, "spotinference") for n in range(3)]
    for number, gateway in enumerate(gateways):
        gateway.add("k", 10**number)
    await asyncio.gather(*(gateway.exchange() for gateway in gateways))
    for gateway in gateways:
        gateway.spent("k")
        await gateway.exchange()
    assert [gateway.spent("k") for gateway in gateways] == [111] * 3


async def test_a_write_whose_answer_was_lost_counts_once() -> None:
    store = OneConfigMap()
    gateway, other = Budgets(Clock(), "gw-0", store, "ns"), Budgets(Clock(), "gw-1", store, "ns")
    store.lose_answers = 1
    gateway.add("k", 5)
    await gateway.exchange()
    assert gateway.spent("k") == 5
    other.add("k", 1)
    await other.exchange()
    gateway.add("k", 2)
    await gateway.exchange()
    await gateway.exchange()
    assert gateway.spent("k") == 8
    fresh = Budgets(Clock(), "gw-2", store, "ns")
    await fresh.exchange()
    assert fresh.spent("k") == 8


async def test_a_new_month_begins_with_nothing_and_the_old_one_goes() -> None:
    store, clock = OneConfigMap(), Clock()
    gateway = Budgets(clock, "gw-0", store, "ns")
    gateway.add("k", 5)
    await gateway.exchange()
    clock.at = datetime(2026, 12, 1, tzinfo=UTC)
    assert gateway.spent("k") == 0
    gateway.add("k", 1)
    await gateway.exchange()
    assert store.body is not None
    assert store.body["metadata"]["name"] == NAME
    assert list(store.body["data"]) == ["2026-12"]


async def test_a_budget_that_nobody_asks_for_is_not_read() -> None:
    store = OneConfigMap()
    gateway = Budgets(Clock(), "gw-0", store, "ns")
    await gateway.exchange()
    store.get = None  # type: ignore[assignment, method-assign]
    await gateway.exchange()


# --- how many gateways share ---------------------------------------------------------------------


def gateway_pod(name: str, *, node: str | None = "n", restarts: int = 0) -> Json:
    return {
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": f"uid-{name}"},
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": "Running", "containerStatuses": [{"restartCount": restarts}]},
    }


@pytest.mark.fault(67)
def test_pods_that_may_serve_share_the_limits() -> None:
    processes = Processes()
    peers = Peers(Clock(), processes, own_pod="gw-0", processes_per_pod=2)
    assert processes.count(1000.0) == 2
    peers.changed(None, gateway_pod("gw-0"))
    peers.changed(None, gateway_pod("gw-2", node=None))
    peers.synced()
    assert not processes.newcomer(1000.0)
    assert processes.count(1000.0) == 2
    peers.changed(None, gateway_pod("gw-1"))
    peers.synced()
    assert processes.count(1000.0) == 4
    assert not processes.newcomer(1000.0)
    peers.changed(gateway_pod("gw-1"), None)
    assert processes.count(1000.0) == 4  # what it admitted still counts
    assert processes.count(1062.0) == 2


@pytest.mark.parametrize(("others", "restarts"), [(["gw-1"], 0), ([], 1)])
def test_a_gateway_that_starts_beside_others_or_again_is_a_newcomer(
    others: list[str], restarts: int
) -> None:
    processes = Processes()
    peers = Peers(Clock(), processes, own_pod="gw-0", processes_per_pod=1)
    for name in others:
        peers.changed(None, gateway_pod(name))
    peers.changed(None, gateway_pod("gw-0", restarts=restarts))
    peers.synced()
    assert processes.newcomer(1000.0)
    assert not processes.newcomer(1076.0)


async def test_a_gateway_with_peers_watches_them() -> None:
    selector = "app.kubernetes.io/component=gateway"
    async with bench(peers_selector=selector, namespace=None) as b:
        for name in ("gw-test", "gw-other"):
            body = gateway_pod(name)
            body["metadata"]["labels"] = {"app.kubernetes.io/component": "gateway"}
            b.kube.put(POD, body)
        limits = b.gateway.context.limits
        await eventually(lambda: limits._processes.count(limits._clock.monotonic()) == 2, 5)
