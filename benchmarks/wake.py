"""The control plane's share of a wake, on the sim engine, N wakes.

    python -m benchmarks.wake [--wakes 50] [--json]

Measured: request arrival at the client → the Deployment's scale write at the API server (audit
log, the same machine's clock); pod Ready (its condition seen by a watch) → first byte of the
answer's first token at the client. Goals: p99 < 100 ms and p99 < 50 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from datetime import UTC, datetime

import aiohttp

from benchmarks.report import Report
from spotinference.api import names
from spotinference.api.kinds import POD, Json
from spotinference.clients.reflector import Reflector
from spotinference.devcluster.client import Answer, ask, percentile
from spotinference.devcluster.handle import ClusterHandle, asleep, cluster

TOPOLOGY = """
pools:
  - name: spot
    provider: gke
    bootDelay: 200ms
    idleAfter: 1h
    markets: [{zone: zone-a, capacity: 2}]
engine: {startDelay: 200ms, tokensPerSecond: 200}
"""
TIER = """
apiVersion: spotinference.dev/v1alpha1
kind: InferenceTier
metadata: {name: quick, namespace: default}
spec:
  model: {source: hf://spotinference/demo}
  placement: {pools: [spot]}
  scaling: {minReplicas: 0, maxReplicas: 1, idleTimeout: 1s}
  resources: {cpu: 100m, memory: 128Mi, sharedMemory: 16Mi}
  interruption: {drain: 1s}
  cache: {size: 1Gi, storageClassName: shared, retain: false}
"""


class ReadyTimes:
    """When each engine pod's Ready condition was first seen, by our own watch."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def on_change(self, _: Json | None, after: Json | None) -> None:
        if after is None or after["metadata"].get("deletionTimestamp"):
            return
        for condition in after.get("status", {}).get("conditions", []):
            if condition["type"] == "Ready" and condition["status"] == "True":
                self.seen.setdefault(after["metadata"]["uid"], time.monotonic())


async def one_wake(
    bed: ClusterHandle, session: aiohttp.ClientSession, ready: ReadyTimes
) -> tuple[float, float, Answer]:
    """(arrival → scale write, Ready → first token) in ms, and the answer."""
    mark = bed.audit_mark()
    before = set(ready.seen)
    asked_at = datetime.now(UTC)
    answer = await ask(session, bed.gateway_url, bed.api_key, "quick", max_tokens=2)
    scales = [
        w
        for w in bed.writes_since(mark)
        if w.resource == "deployments" and w.user == "operator" and w.code < 300
    ]
    written_at = datetime.fromisoformat(scales[0].at)
    async with asyncio.timeout(5):
        while set(ready.seen) == before:  # noqa: ASYNC110  # the gateway may see it before our watch
            await asyncio.sleep(0.001)
    new = [at for uid, at in ready.seen.items() if uid not in before]
    first = answer.first_token_at or float("nan")
    await bed.tier_until("quick", lambda t: t["status"].get("phase") == "Asleep", deadline_s=60)
    await _no_pods(bed)
    return (written_at - asked_at).total_seconds() * 1e3, (first - max(new)) * 1e3, answer


async def _no_pods(bed: ClusterHandle) -> None:
    async with asyncio.timeout(60):
        while await bed.engine_pods("quick"):  # noqa: ASYNC110  # a remote state
            await asyncio.sleep(0.1)


async def measure(wakes: int) -> Report:
    report = Report(f"control-plane share of a wake, {wakes} wakes, sim engine")
    scale_ms: list[float] = []
    byte_ms: list[float] = []
    async with (
        cluster("bench-wake", topology=TOPOLOGY) as bed,
        aiohttp.ClientSession(auto_decompress=False) as session,
    ):
        await bed.apply(TIER)
        await bed.tier_until("quick", asleep, deadline_s=60)
        ready = ReadyTimes()
        selector = f"{names.LABEL_ROLE}={names.ROLE_ENGINE}"
        watch = Reflector(bed.kube, POD, label_selector=selector, on_change=ready.on_change)
        watching = asyncio.create_task(watch.run())
        await watch.wait_synced(10)
        for number in range(wakes):
            to_scale, to_byte, answer = await one_wake(bed, session, ready)
            report.expect(answer.complete, f"wake {number + 1} answered") if not (
                answer.complete
            ) else None
            scale_ms.append(to_scale)
            byte_ms.append(to_byte)
            print(
                f"wake {number + 1}/{wakes}: scale {to_scale:.1f} ms, byte {to_byte:.1f} ms",
                file=sys.stderr,
            )
        watching.cancel()
    for what, values, goal in (
        ("request arrival → replicas patched", scale_ms, 100),
        ("pod Ready → first token at the client", byte_ms, 50),
    ):
        report.row(
            what=what,
            p50_ms=percentile(values, 0.5),
            p99_ms=percentile(values, 0.99),
            max_ms=max(values),
            goal_p99_ms=goal,
        )
        report.facts[f"{what}: p99 < {goal} ms"] = percentile(values, 0.99) < goal
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wakes", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.exit(asyncio.run(measure(options.wakes)).print(as_json=options.json))


if __name__ == "__main__":
    main()
