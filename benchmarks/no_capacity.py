"""No capacity anywhere, the cap at 60 s: a true 504 at the cap, and nothing held afterwards.

python -m benchmarks.no_capacity [--cap 60] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import aiohttp

from benchmarks.report import Report
from benchmarks.wake import TIER
from spotinference.devcluster.client import ask
from spotinference.devcluster.handle import ClusterHandle, asleep, cluster

TOPOLOGY = """
pools:
  - name: spot
    provider: gke
    bootDelay: 200ms
    markets: [{zone: zone-a, capacity: 0}, {zone: zone-b, capacity: 0}]
"""


async def _plain(bed: ClusterHandle, session: aiohttp.ClientSession) -> tuple[int, float, str]:
    """(status, seconds, body) of a request that is not streamed."""
    began_at = time.monotonic()
    body = {"model": "quick", "messages": [{"role": "user", "content": "anybody?"}]}
    headers = {"Authorization": f"Bearer {bed.api_key}"}
    url = f"{bed.gateway_url}/v1/chat/completions"
    async with session.post(url, json=body, headers=headers) as response:
        text = await response.text()
        return response.status, time.monotonic() - began_at, text


async def measure(cap_s: int) -> Report:
    report = Report(f"no capacity anywhere, cap {cap_s} s, sim engine")
    async with (
        cluster("bench-no-capacity", topology=TOPOLOGY) as bed,
        aiohttp.ClientSession(auto_decompress=False) as session,
    ):
        wake = f"wake: {{cap: {cap_s}s, budget: {cap_s}s}}"
        await bed.apply(TIER.rstrip() + f"\n  {wake}\n")
        await bed.tier_until("quick", asleep, deadline_s=60)
        asking = ask(session, bed.gateway_url, bed.api_key, "quick")
        (status, seconds, text), streamed = await asyncio.gather(_plain(bed, session), asking)
        tier = await bed.tier_until(
            "quick", lambda t: t["status"].get("phase") == "Asleep", deadline_s=30
        )
        async with asyncio.timeout(30):
            while await bed.engine_pods("quick"):  # noqa: ASYNC110  # a remote state
                await asyncio.sleep(0.2)
        desired = sum(d["spec"].get("replicas", 0) for d in await bed.deployments("quick"))
        nodes = len(await bed.gpu_nodes())
    report.row(request="not streamed", status=status, after_s=seconds, said=text[:90])
    report.row(
        request="streamed",
        status=streamed.status,
        after_s=(streamed.ended_at or 0) - streamed.sent_at,
        said=(streamed.error or "")[:90],
    )
    report.expect(status == 504, "not streamed: 504")
    report.facts["not streamed: seconds past the cap"] = round(seconds - cap_s, 3)
    report.expect("wake_timeout" in (streamed.error or ""), "streamed: error event wake_timeout")
    report.expect(streamed.dones == 0, "streamed: no [DONE]")
    report.expect(desired == 0, "replicas 0")
    report.expect(nodes == 0, "no GPU node left")
    report.facts["phase afterwards"] = tier["status"]["phase"]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cap", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.exit(asyncio.run(measure(options.cap)).print(as_json=options.json))


if __name__ == "__main__":
    main()
