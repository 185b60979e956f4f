"""The second wake on a fresh node of the same zone: bytes downloaded, kernels compiled.

    python -m benchmarks.second_wake [--engine sim|vllm] [--json]

A zonal cache volume, one zone. Bytes come from the hub server's request log. Kernels are the files
that a compiler leaves, wherever a pod can write: on the volume, in its /tmp, in its home. An engine
that compiles (neither is started with --enforce-eager) and leaves no new ones has used the old ones.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from pathlib import Path

import aiohttp

from benchmarks.report import Report
from spotinference.devcluster.client import ask
from spotinference.devcluster.handle import ClusterHandle, asleep, cluster

TOPOLOGY = """
pools:
  - name: spot
    provider: gke
    bootDelay: 1s
    idleAfter: 1s
    markets: [{zone: zone-a, capacity: 2}]
engine: {startDelay: 1s, tokensPerSecond: 50, env: {SPOTINFERENCE_SIM_COMPILE_S: "3"}}
"""
TIER = """
apiVersion: spotinference.dev/v1alpha1
kind: InferenceTier
metadata: {name: cached, namespace: default}
spec:
  model: {source: hf://spotinference/demo}
  engine: {maxModelLen: 1024, maxNumSeqs: 4}
  placement: {pools: [spot]}
  scaling: {minReplicas: 0, maxReplicas: 1, idleTimeout: 2s}
  resources: {cpu: 100m, memory: 128Mi, sharedMemory: 16Mi}
  interruption: {drain: 1s}
  cache: {size: 2Gi, storageClassName: zonal, accessMode: ReadWriteOnce, retain: false}
"""
KERNELS = {".so", ".cubin"}
SIMULATED_KERNELS = "compiled.json"
EAGER = "--enforce-eager"


def downloaded(bed: ClusterHandle) -> int:
    """Bytes that the hub has sent so far."""
    log = bed.paths.hub_log
    lines = log.read_text().splitlines() if log.exists() else []
    return sum(int(json.loads(line).get("bytes", 0)) for line in lines)


def kernels(bed: ClusterHandle) -> set[tuple[str, int]]:
    """Compiled kernels and when each was written (ns)."""
    found = set()
    for folder, _, files in os.walk(bed.paths.root):  # pods end meanwhile: what goes is not counted
        for name in files:
            if Path(name).suffix in KERNELS or name == SIMULATED_KERNELS:
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    found.add((str(path), path.stat().st_mtime_ns))
    return found


async def one_wake(bed: ClusterHandle, session: aiohttp.ClientSession, report: Report) -> None:
    number = len(report.rows) + 1
    bytes_before, kernels_before = downloaded(bed), kernels(bed)
    began_at = time.monotonic()
    answer = await ask(session, bed.gateway_url, bed.api_key, "cached", max_tokens=4)
    first = (answer.first_token_at or time.monotonic()) - began_at
    pods = await bed.engine_pods("cached")
    nodes = [p["spec"]["nodeName"] for p in pods]
    eager = any(EAGER in c.get("args", []) for p in pods for c in p["spec"]["containers"])
    compiled = len(kernels(bed) - kernels_before)
    report.row(
        wake=number,
        node=",".join(nodes),
        first_token_s=first,
        downloaded_bytes=downloaded(bed) - bytes_before,
        kernels_found=len(kernels_before),
        kernels_compiled=compiled,
    )
    report.expect(answer.complete, f"wake {number} answered")
    report.expect(not eager, f"wake {number}: the engine compiles")
    if number == 1:
        report.expect(compiled > 0, "first wake: kernels compiled")
    if number == 2:
        report.expect(downloaded(bed) == bytes_before, "second wake: 0 bytes downloaded")
        report.expect(compiled == 0, "second wake: nothing compiled")
        report.expect(report.rows[0]["node"] != report.rows[1]["node"], "second wake: fresh node")
    await bed.tier_until("cached", asleep, deadline_s=120)
    async with asyncio.timeout(60):
        while await bed.gpu_nodes():  # noqa: ASYNC110  # a remote state
            await asyncio.sleep(0.2)


async def measure(engine: str) -> Report:
    report = Report(f"second wake on a fresh node of the same zone, engine {engine}")
    async with (
        cluster(f"bench-second-{engine}", engine=engine, topology=TOPOLOGY) as bed,
        aiohttp.ClientSession(auto_decompress=False) as session,
    ):
        await bed.apply(TIER)
        await bed.tier_until("cached", asleep, deadline_s=120)
        report.facts["weights fetched before the first wake (bytes)"] = downloaded(bed)
        for _ in range(2):
            await one_wake(bed, session, report)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["sim", "vllm"], default="sim")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.exit(asyncio.run(measure(options.engine)).print(as_json=options.json))


if __name__ == "__main__":
    main()
