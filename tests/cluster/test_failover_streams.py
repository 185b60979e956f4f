"""A streamed answer on a real control plane: its node vanishes, the answer goes on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import aiohttp
import pytest
from openai import AsyncOpenAI

from spotinference.api.kinds import LEASE, Json
from tests.cluster.operators import drop_tier, engines, make_tier, phase, replicas
from tests.support.cluster import LiveCluster
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, chat, stream

pytestmark = pytest.mark.cluster

NAMESPACE = "default"
"""The demo key's scope."""
TOKENS = 150
"""Three seconds at the simulated engine's 50 tokens per second."""


@dataclass(slots=True)
class Answer:
    """What the SDK saw."""

    text: str = ""
    ids: set[str] = field(default_factory=set)
    roles: int = 0
    finishes: list[str] = field(default_factory=list)
    usages: list[tuple[int, int]] = field(default_factory=list)

    @property
    def substance(self) -> tuple[str, int, int, list[str], list[tuple[int, int]]]:
        return self.text, len(self.ids), self.roles, self.finishes, self.usages


def client(cluster: LiveCluster) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{cluster.state.gateway_url}/v1", api_key=cluster.state.api_key)


async def ask(openai: AsyncOpenAI, model: str, into: Answer, *, seed: int | None) -> Answer:
    answer = await openai.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "tell me a long story"}],
        temperature=0 if seed is None else 0.9,
        seed=seed,
        max_tokens=TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in answer:
        into.ids.add(f"{chunk.id} {chunk.created} {chunk.model}")
        for choice in chunk.choices:
            into.text += choice.delta.content or ""
            into.roles += choice.delta.role is not None
            if choice.finish_reason:
                into.finishes.append(choice.finish_reason)
        if chunk.usage is not None:
            into.usages.append((chunk.usage.prompt_tokens, chunk.usage.completion_tokens))
    return into


async def serving_pod(cluster: LiveCluster, model: str) -> Json:
    """The pod that works right now, by its own metrics."""
    for pod in await engines(cluster, model, NAMESPACE):
        ip = pod["status"].get("podIP")
        async with aiohttp.ClientSession() as session:
            try:
                async with session.get(f"http://{ip}:8000/metrics") as response:
                    text = await response.text()
            except aiohttp.ClientError:
                continue
        running = [line for line in text.splitlines() if "num_requests_running{" in line]
        if running and float(running[0].split()[-1]) > 0:
            return pod
    raise AssertionError("no pod is serving")


@pytest.mark.fault(37, 38)
@pytest.mark.parametrize("seed", [None, 5], ids=["greedy", "seeded"])
@pytest.mark.parametrize("others", [1, 0])
async def test_a_node_lost_mid_stream_is_not_seen_by_the_client(
    cluster: LiveCluster, others: int, seed: int | None
) -> None:
    model = f"fail-{others}-{'greedy' if seed is None else 'seeded'}"
    count = others + 1
    await make_tier(cluster, model, NAMESPACE, scaling={"minReplicas": count, "maxReplicas": count})
    await phase(cluster, model, NAMESPACE, "Ready", 90)

    async def all_ready() -> bool:
        pods = await engines(cluster, model, NAMESPACE)
        return sum(_ready(pod) for pod in pods) == count

    await eventually(all_ready, 60)
    async with client(cluster) as openai:
        whole = await ask(openai, model, Answer(), seed=seed)
        assert len(whole.text) > 450, "too short to be cut three times"
        for cut_at in (1, 100, 400):
            await eventually(all_ready, 60)
            seen = Answer()
            running = asyncio.create_task(ask(openai, model, seen, seed=seed))
            await eventually(lambda s=seen, n=cut_at: len(s.text) >= n, 30)  # type: ignore[misc]
            pod = await serving_pod(cluster, model)
            await cluster.reclaim(pod["spec"]["nodeName"])
            assert not running.done(), "the answer was over before the cut"
            await asyncio.wait_for(running, 60)
            assert seen.substance == whole.substance
    await drop_tier(cluster, model, NAMESPACE)


def _ready(pod: Json) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


async def test_a_request_wakes_a_sleeping_tier_and_is_answered(cluster: LiveCluster) -> None:
    model = "fail-wake"
    await make_tier(cluster, model, NAMESPACE)
    await phase(cluster, model, NAMESPACE, "Asleep", 60)
    mark = cluster.mark()
    async with client(cluster) as openai:
        seen = await ask(openai, model, Answer(), seed=None)
    assert len(seen.finishes) == 1
    await phase(cluster, model, NAMESPACE, "Asleep", 60)
    assert await replicas(cluster, model, NAMESPACE) == {}
    demand = [r for r in cluster.audit(mark, user="gateway") if model in r.name]
    assert {r.resource for r in demand} == {"leases"}
    assert demand[0].verb == "patch"
    assert demand[-1].verb == "delete"
    leases = await cluster.kube.list(LEASE, NAMESPACE)
    assert not [lease for lease in leases.items if model in lease["metadata"]["name"]]
    await drop_tier(cluster, model, NAMESPACE)


async def test_streams_that_wake_a_tier_carry_heartbeats_and_end_whole(
    cluster: LiveCluster,
) -> None:
    model = "fail-many"
    await make_tier(cluster, model, NAMESPACE)
    await phase(cluster, model, NAMESPACE, "Asleep", 60)
    headers = {"Authorization": f"Bearer {cluster.state.api_key}"}
    async with aiohttp.ClientSession(cluster.state.gateway_url, headers=headers) as http:
        bodies = [chat(f"story {number}", model=model, max_tokens=20) for number in range(20)]
        answers = await asyncio.gather(*(stream(http, CHAT, body) for body in bodies))
    assert all(answer.done == 1 and answer.clean for answer in answers)
    await drop_tier(cluster, model, NAMESPACE)
