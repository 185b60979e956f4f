"""N concurrent requests to a sleeping tier: all answered, one scale write, first come first served.

python -m benchmarks.crowd [--requests 200] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys

import aiohttp

from benchmarks.report import Report
from benchmarks.wake import TIER, TOPOLOGY
from spotinference.devcluster.client import Answer, ask, percentile
from spotinference.devcluster.handle import ClusterHandle, asleep, cluster

ARRIVAL_GAP_S = 0.005


async def _arrive(bed: ClusterHandle, session: aiohttp.ClientSession, number: int) -> Answer:
    await asyncio.sleep(number * ARRIVAL_GAP_S)
    return await ask(
        session, bed.gateway_url, bed.api_key, "quick", prompt=f"request {number}", max_tokens=16
    )


def inversions(starts: list[float], slack_s: float) -> int:
    """Neighbours of the arrival order answered in the wrong order by more than `slack_s`."""
    pairs = itertools.pairwise(starts)
    return sum(later < earlier - slack_s for earlier, later in pairs)


async def measure(requests: int) -> Report:
    report = Report(f"{requests} concurrent requests to a sleeping tier, sim engine")
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        cluster("bench-crowd", topology=TOPOLOGY) as bed,
        aiohttp.ClientSession(auto_decompress=False, connector=connector) as session,
    ):
        await bed.apply(TIER)
        await bed.tier_until("quick", asleep, deadline_s=60)
        mark = bed.audit_mark()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_arrive(bed, session, n)) for n in range(requests)]
        answers = [task.result() for task in tasks]
        writes = bed.writes_since(mark)
    scales = [w for w in writes if w.resource == "deployments" and w.user == "operator"]
    leases = [w for w in writes if w.resource == "leases" and w.user == "gateway"]
    first = [a.first_token_at or float("inf") for a in answers]
    waits = [b - a.sent_at for a, b in zip(answers, first, strict=True)]
    report.row(
        good=sum(a.complete for a in answers),
        scale_writes=len([w for w in scales if w.code < 300]),
        gateway_lease_writes=len(leases),
        wait_p50_s=percentile(waits, 0.5),
        wait_max_s=max(waits),
    )
    report.expect(all(a.complete for a in answers), f"{requests} good answers")
    # idleTimeout is 1 s, but the audit log was read as the last answer ended: no sleep is in it.
    report.expect(
        len([w for w in scales if w.code < 300]) == 1,
        "exactly one scale write woke the Deployment",
    )
    wrong = inversions(first, slack_s=0.02)
    report.facts["neighbours served out of order by > 20 ms"] = wrong
    for answer in [a for a in answers if a.error][:3]:
        report.facts[f"error: {answer.error}"] = answer.status
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.exit(asyncio.run(measure(options.requests)).print(as_json=options.json))


if __name__ == "__main__":
    main()
