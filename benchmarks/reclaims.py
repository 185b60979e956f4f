"""100 streams across 10 reclaims without notice, on the sim engine.

    python -m benchmarks.reclaims [--streams 100] [--reclaims 10] [--json]

Each stream is compared with its own undisturbed run: whole, byte-identical, nothing twice. Printed:
how many were cut, and the longest stall of each stream (p50, p99).
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import aiohttp

from benchmarks.report import Report
from spotinference.devcluster.client import Answer, ask, percentile
from spotinference.devcluster.handle import ClusterHandle, cluster

TOPOLOGY = """
pools:
  - name: spot-1
    provider: gke
    bootDelay: 1s
    markets: [{zone: zone-a, capacity: 4}, {zone: zone-b, capacity: 4}]
  - name: spot-2
    provider: karpenter
    bootDelay: 1s
    markets: [{zone: zone-a, capacity: 4}, {zone: zone-b, capacity: 4}]
engine: {startDelay: 1s, tokensPerSecond: 20}
"""
TIER = """
apiVersion: spotinference.dev/v1alpha1
kind: InferenceTier
metadata: {name: crowd, namespace: default}
spec:
  model: {source: hf://spotinference/demo}
  placement: {pools: [spot-1, spot-2]}
  scaling: {minReplicas: 2, maxReplicas: 3, idleTimeout: 10m, targetRunning: 1000}
  resources: {cpu: 100m, memory: 128Mi, sharedMemory: 16Mi}
  interruption: {drain: 1s}
  cache: {size: 1Gi, storageClassName: shared, retain: false}
"""
REQUEST_TOKENS = 600


async def _ask(bed: ClusterHandle, session: aiohttp.ClientSession, number: int) -> Answer:
    return await ask(
        session,
        bed.gateway_url,
        bed.api_key,
        "crowd",
        prompt=f"story number {number}",
        max_tokens=REQUEST_TOKENS,
        ignore_eos=True,
    )


async def _disturb(bed: ClusterHandle, reclaims: int, every_s: float) -> int:
    """Takes the node of a ready replica, again and again; how many were taken."""
    taken = 0
    for _ in range(reclaims):
        await asyncio.sleep(every_s)
        async with asyncio.timeout(60):
            pods: list[str] = []
            while not pods:
                pods = [
                    p["spec"]["nodeName"]
                    for p in await bed.engine_pods("crowd")
                    if any(
                        c["type"] == "Ready" and c["status"] == "True"
                        for c in p.get("status", {}).get("conditions", [])
                    )
                    and not p["metadata"].get("deletionTimestamp")
                ]
                await asyncio.sleep(0.05)
        await bed.reclaim(pods[0])
        taken += 1
        print(f"reclaim {taken}/{reclaims}: node {pods[0]} gone", file=sys.stderr)
    return taken


async def measure(streams: int, reclaims: int) -> Report:
    report = Report(f"{streams} streams across {reclaims} reclaims without notice, sim engine")
    async with (
        cluster("bench-reclaims", topology=TOPOLOGY) as bed,
        aiohttp.ClientSession(
            auto_decompress=False, connector=aiohttp.TCPConnector(limit=0)
        ) as session,
    ):
        await bed.apply(TIER)
        await bed.tier_until(
            "crowd", lambda t: t.get("status", {}).get("readyReplicas") == 2, deadline_s=120
        )
        print("reference run, undisturbed …", file=sys.stderr)
        asking = [_ask(bed, session, n) for n in range(streams)]
        reference = await asyncio.gather(*asking)
        print("the same under reclaims …", file=sys.stderr)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_ask(bed, session, n)) for n in range(streams)]
            disturbing = group.create_task(_disturb(bed, reclaims, every_s=2.0))
        answers = [task.result() for task in tasks]
    whole = sum(a.complete for a in answers)
    same = sum(a.text == r.text for a, r in zip(answers, reference, strict=True))
    once = sum(
        a.roles == 1 and len(a.ids) == 1 and len(a.usage) == 1 and a.usage == r.usage
        for a, r in zip(answers, reference, strict=True)
    )
    stalls = [a.longest_stall_s for a in answers]
    usual = [a.longest_stall_s for a in reference]
    report.row(
        run="undisturbed", stall_p50_s=percentile(usual, 0.5), stall_p99_s=percentile(usual, 0.99)
    )
    report.row(
        run="reclaims", stall_p50_s=percentile(stalls, 0.5), stall_p99_s=percentile(stalls, 0.99)
    )
    report.facts["reclaims while streams ran"] = disturbing.result()
    report.expect(all(r.complete for r in reference), f"reference: {streams} whole")
    report.expect(whole == streams, f"{whole} of {streams} complete")
    report.expect(same == streams, f"{same} of {streams} byte-identical")
    report.expect(once == streams, f"{once} of {streams} with one id, role and usage")
    for answer in [a for a in answers if a.error][:5]:
        report.facts[f"error {answer.error}"] = answer.status
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--reclaims", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.exit(asyncio.run(measure(options.streams, options.reclaims)).print(as_json=options.json))


if __name__ == "__main__":
    main()
