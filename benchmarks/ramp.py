"""Load 1 → 20 → 0 streams on a tier with at most 3 replicas: the timeline of replicas and nodes.

    python -m benchmarks.ramp [--json]

Stabilisation times are scaled down (fields of the tier) so that the story fits into a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass, field

import aiohttp

from benchmarks.report import Report
from spotinference.devcluster.client import Answer, ask
from spotinference.devcluster.handle import ClusterHandle, asleep, cluster

TOPOLOGY = """
pools:
  - name: spot-1
    provider: gke
    bootDelay: 3s
    idleAfter: 5s
    markets: [{zone: zone-a, capacity: 4}, {zone: zone-b, capacity: 4}]
engine: {startDelay: 4s, tokensPerSecond: 20}
"""
TIER = """
apiVersion: spotinference.dev/v1alpha1
kind: InferenceTier
metadata: {name: ramp, namespace: default}
spec:
  model: {source: hf://spotinference/demo}
  engine: {maxNumSeqs: 4}
  placement: {pools: [spot-1]}
  scaling:
    minReplicas: 0
    maxReplicas: 3
    targetWaiting: 2
    targetRunning: 4
    idleTimeout: 8s
    scaleUp: {stabilization: 3s, maxStep: 2, period: 20s}
    scaleDown: {stabilization: 8s}
  resources: {cpu: 100m, memory: 128Mi, sharedMemory: 16Mi}
  interruption: {drain: 5s}
  cache: {size: 1Gi, storageClassName: shared, retain: false}
"""


@dataclass(slots=True)
class Timeline:
    began_at: float = field(default_factory=time.monotonic)
    rows: list[tuple[float, int, int, int, int, str]] = field(default_factory=list)

    def add(self, streams: int, desired: int, ready: int, nodes: int, reason: str) -> None:
        if not self.rows or self.rows[-1][1:] != (streams, desired, ready, nodes, reason):
            at = time.monotonic() - self.began_at
            self.rows.append((at, streams, desired, ready, nodes, reason))
            print(
                f"{at:6.1f} s  streams {streams:2}  desired {desired}  ready {ready}  "
                f"nodes {nodes}  {reason}",
                file=sys.stderr,
            )


async def _observe(bed: ClusterHandle, line: Timeline, live: list[asyncio.Task[Answer]]) -> None:
    while True:
        tier = await bed.tier("ramp")
        status = tier.get("status", {})
        desired = sum(d["spec"].get("replicas", 0) for d in await bed.deployments("ramp"))
        line.add(
            sum(not t.done() for t in live),
            desired,
            int(status.get("readyReplicas", 0)),
            len(await bed.gpu_nodes()),
            str((status.get("lastDecision") or {}).get("reason", "")),
        )
        await asyncio.sleep(0.25)


async def measure() -> Report:
    report = Report("load 1 → 20 → 0 streams, at most 3 replicas, sim engine")
    async with (
        cluster("bench-ramp", topology=TOPOLOGY) as bed,
        aiohttp.ClientSession(auto_decompress=False) as session,
    ):
        await bed.apply(TIER)
        await bed.tier_until("ramp", asleep, deadline_s=60)
        line = Timeline()
        live: list[asyncio.Task[Answer]] = []

        def start(count: int, tokens: int) -> None:
            live.extend(
                asyncio.create_task(
                    ask(
                        session,
                        bed.gateway_url,
                        bed.api_key,
                        "ramp",
                        prompt=f"n{len(live) + n}",
                        max_tokens=tokens,
                        ignore_eos=True,
                    )
                )
                for n in range(count)
            )

        watching = asyncio.create_task(_observe(bed, line, live))
        start(1, 200)
        await bed.tier_until("ramp", lambda t: t["status"].get("phase") == "Ready", deadline_s=60)
        start(19, 500)
        answers = await asyncio.gather(*live)
        await bed.tier_until("ramp", lambda t: t["status"].get("phase") == "Asleep", deadline_s=120)
        async with asyncio.timeout(60):
            while await bed.gpu_nodes():  # noqa: ASYNC110  # a remote state
                await asyncio.sleep(0.2)
        watching.cancel()
    for at, streams, desired, ready, nodes, reason in line.rows:
        report.row(
            at_s=at, streams=streams, desired=desired, ready=ready, nodes=nodes, decision=reason
        )
    report.expect(all(a.complete for a in answers), "20 of 20 answers complete")
    report.expect(max(r[2] for r in line.rows) == 3, "three replicas at the peak")
    report.expect(max(r[2] for r in line.rows) <= 3, "never more than three asked for")
    report.expect(max(r[4] for r in line.rows) <= 3, "never more than three nodes launched")
    report.expect(line.rows[-1][2] == 0, "zero replicas at the end")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.exit(asyncio.run(measure()).print(as_json=options.json))


if __name__ == "__main__":
    main()
