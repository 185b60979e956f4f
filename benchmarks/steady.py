"""Tiers in steady state: mutating requests by operator and gateway, from the audit log.

python -m benchmarks.steady [--tiers 50] [--seconds 60] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter

from benchmarks.report import Report
from benchmarks.wake import TIER, TOPOLOGY
from spotinference.devcluster.handle import Write, asleep, cluster


def is_leader_renewal(write: Write) -> bool:
    return write.resource == "leases" and write.namespace == "spotinference"


async def measure(tiers: int, seconds: int) -> Report:
    report = Report(f"{tiers} tiers in steady state for {seconds} s, sim engine")
    async with cluster("bench-steady", topology=TOPOLOGY) as bed:
        for number in range(tiers):
            await bed.apply(TIER.replace("name: quick", f"name: quiet-{number}"))
        for number in range(tiers):
            await bed.tier_until(
                f"quiet-{number}",
                asleep,
                deadline_s=300,
            )
            print(f"settled: {number + 1}/{tiers}", file=sys.stderr)
        await asyncio.sleep(15)
        mark = bed.audit_mark()
        await asyncio.sleep(seconds)
        writes = bed.writes_since(mark)
    other = [w for w in writes if not is_leader_renewal(w)]
    report.row(
        tiers=tiers,
        seconds=seconds,
        leader_renewals=len(writes) - len(other),
        other_mutating_requests=len(other),
    )
    report.expect(not other, "no mutating request except on leader Leases")
    counted = Counter((w.user, w.verb, w.resource, w.subresource) for w in other)
    for what, count in counted.most_common(10):
        report.facts[" ".join(what)] = count
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiers", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.exit(asyncio.run(measure(options.tiers, options.seconds)).print(as_json=options.json))


if __name__ == "__main__":
    main()
