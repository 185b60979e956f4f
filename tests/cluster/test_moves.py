"""A price is edited, and a replica moves: on a real API server, with a client that streams meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from spotinference.api import names
from spotinference.api.kinds import EVENT, POOL, TIER, Json
from tests.cluster.operators import (
    Operator,
    drop_tier,
    engines,
    leading,
    make_tier,
    operator,
    phase,
    status,
)
from tests.cluster.test_failover_streams import NAMESPACE, Answer, ask, client
from tests.support.cluster import LiveCluster
from tests.support.eventually import eventually

pytestmark = pytest.mark.cluster

MODEL = "moving"
OLD, NEW = "spot-l4", "spot-a100"
SCALED = """
# The product's own operator; but a replica has proven itself after two seconds instead of two
# minutes, and prices are for ten hours, so that a move pays after seconds instead of minutes.
from spotinference.core import moves
moves.PROVEN_S, moves.HOUR_S = 2.0, 36_000.0
import spotinference.__main__
"""


async def test_an_edited_price_moves_the_replica_and_a_streaming_client_loses_nothing(
    cluster: LiveCluster, tmp_path: Path
) -> None:
    program = tmp_path / "scaled.py"
    program.write_text(SCALED)
    pool = await cluster.kube.get(POOL, OLD)
    await cluster.process("operator", "stop")
    try:
        with operator(cluster, program=program) as it:
            await leading(it)
            await _move(cluster, it)
    finally:
        await _set_price(cluster, pool["spec"]["price"]["microUSDPerHour"])
        await cluster.process("operator", "start")
        await drop_tier(cluster, MODEL, NAMESPACE)


async def _move(cluster: LiveCluster, it: Operator) -> None:
    one = {"minReplicas": 1, "maxReplicas": 1}
    await make_tier(cluster, MODEL, NAMESPACE, pools=(OLD, NEW), scaling=one)
    await phase(cluster, MODEL, NAMESPACE, "Ready", 90)
    (old,) = await engines(cluster, MODEL, NAMESPACE)
    assert _pool(old) == OLD
    over = asyncio.Event()
    async with client(cluster) as openai:
        whole = await ask(openai, MODEL, Answer(), seed=None)
        asking = asyncio.create_task(_keep_asking(openai, whole, over))
        await _set_price(cluster, 9_000_000)
        try:
            await eventually(lambda: _gone(cluster, old), 60, "the old replica is gone")
        finally:
            over.set()
            answers = await asyncio.wait_for(asking, 60)
    assert answers >= 2
    (new,) = await engines(cluster, MODEL, NAMESPACE)
    assert _pool(new) == NEW

    async def at_rest() -> bool:
        now = await status(cluster, MODEL, NAMESPACE)
        assert "move" not in now, now["move"]
        return True

    await eventually(at_rest, 20, "status.move is reset")
    assert it.metric("spotinference_operator_market_moves_total", tier=f"{NAMESPACE}/{MODEL}") == 1
    said = [
        e["message"]
        for e in (await cluster.kube.list(EVENT, NAMESPACE)).items
        if e["involvedObject"]["kind"] == TIER.kind and e["involvedObject"]["name"] == MODEL
    ]
    assert [m for m in said if m.startswith(f"{NEW}/") and f"instead of {OLD}/" in m], said


async def _keep_asking(openai: AsyncOpenAI, whole: Answer, over: asyncio.Event) -> int:
    """One stream after the other, each of them the whole answer; how many there were."""
    answers = 0
    while not over.is_set():
        seen = await ask(openai, MODEL, Answer(), seed=None)
        assert seen.substance == whole.substance
        answers += 1
    return answers


async def _gone(cluster: LiveCluster, old: Json) -> bool:
    """Until then: whenever the old one drains, the new one is ready."""
    pods = await engines(cluster, MODEL, NAMESPACE)
    ready = {p["metadata"]["uid"] for p in pods if _ready(p)}
    uid = old["metadata"]["uid"]
    now = next((p for p in pods if p["metadata"]["uid"] == uid), None)
    marks = {} if now is None else now["metadata"].get("annotations") or {}
    drains = now is None or names.ANNOTATION_DOOMED_UNTIL in marks
    if drains and not ready - {uid}:
        # Not an assertion: `eventually` would ask again.
        raise RuntimeError(f"the old replica drains before the new one is ready: {pods}")
    return now is None


async def _set_price(cluster: LiveCluster, micro_usd: int) -> None:
    price = {"spec": {"price": {"microUSDPerHour": micro_usd}}}
    await cluster.kube.merge_patch(POOL, OLD, None, price)


def _pool(pod: Json) -> str:
    found: str = pod["metadata"]["labels"][names.LABEL_POOL]
    return found


def _ready(pod: Json) -> bool:
    found = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in found)
