"""The second wake on a fresh node of the same zone: bytes downloaded, kernels compiled.

    python -m benchmarks.second_wake [--engine sim|vllm] [--json]

A zonal cache volume, one zone. Bytes come from the hub server's request log; compile hits and
misses from the engine's own log; on vLLM the files of torch_compile_cache are compared as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
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
COMPILED = re.compile(
    r"compile cache miss|Compiling a graph|torch\.compile takes|saved AOT compiled function",
    re.IGNORECASE,
)
REUSED = re.compile(
    r"compile cache hit|Directly load the compiled graph|reloaded? AOT|loaded AOT", re.IGNORECASE
)


def downloaded(bed: ClusterHandle) -> int:
    """Bytes that the hub has sent so far."""
    log = bed.paths.hub_log
    lines = log.read_text().splitlines() if log.exists() else []
    return sum(int(json.loads(line).get("bytes", 0)) for line in lines)


def compile_files(bed: ClusterHandle) -> dict[str, float]:
    """The compile cache's files and when each was written."""
    root = Path(bed.paths.volumes)
    return {
        str(file.relative_to(root)): file.stat().st_mtime
        for file in root.rglob("*")
        if file.is_file() and "vllm" in file.relative_to(root).parts
    }


def engine_logs(bed: ClusterHandle) -> dict[str, str]:
    return {
        file.name: file.read_text(errors="replace")
        for file in bed.paths.pod_logs.glob("*_engine_*.log")
    }


async def one_wake(bed: ClusterHandle, session: aiohttp.ClientSession, report: Report) -> None:
    number = len(report.rows) + 1
    bytes_before, files_before = downloaded(bed), compile_files(bed)
    logs_before = set(engine_logs(bed))
    began_at = time.monotonic()
    answer = await ask(session, bed.gateway_url, bed.api_key, "cached", max_tokens=4)
    first = (answer.first_token_at or time.monotonic()) - began_at
    nodes = [p["spec"]["nodeName"] for p in await bed.engine_pods("cached")]
    logs = "".join(text for name, text in engine_logs(bed).items() if name not in logs_before)
    files = compile_files(bed)
    new = [name for name in files if name not in files_before]
    report.row(
        wake=number,
        node=",".join(nodes),
        first_token_s=first,
        downloaded_bytes=downloaded(bed) - bytes_before,
        compiled=len(COMPILED.findall(logs)),
        reused=len(REUSED.findall(logs)),
        new_cache_files=len(new),
    )
    report.expect(answer.complete, f"wake {number} answered")
    if number == 2:
        report.expect(downloaded(bed) == bytes_before, "second wake: 0 bytes downloaded")
        report.expect(not COMPILED.search(logs), "second wake: nothing compiled")
        report.expect(bool(REUSED.search(logs)), "second wake: compiled kernels reused")
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
