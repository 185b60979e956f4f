"""Streams for an hour: the gateway's memory must stay where it is after the first minutes."""

from __future__ import annotations

import sys

from benchmarks.gateway import measure, memory
from benchmarks.gateway.measure import Load, Target
from benchmarks.gateway.processes import Group

STREAMS = 200
SLICES = 20
LOOKS = (0, SLICES // 2, SLICES)
"""Slices before which live streams and parked requests are weighed, one by one."""
WEIGHED = 200
SETTLED = 3
"""Slices after which pools, caches and the allocator have what they need."""
MAX_GROWTH = 0.05
MARGIN_MIB = 2.0
"""Of a figure that is read in pages, beside what a fragmenting heap takes."""


def run(target: Target, group: Group, cores: str, seconds: float) -> bool:
    """Prints resident memory over the time; whether it stayed flat."""
    slice_s = max(1.0, seconds / SLICES - measure.WARMUP_S)
    sizes: list[float] = []
    for number in range(SLICES + 1):
        if number in LOOKS:
            _weigh(target, group, number)
        if number == SLICES:
            break
        load = Load("stream" if number % 2 else "plain", STREAMS, slice_s)
        figures = measure.run(target, load, group, cores)
        sizes.append(group.rss_bytes() / 2**20)
        print(
            f"{number + 1:3}/{SLICES}  {load.kind:6}  {sizes[-1]:7.1f} MiB  "
            f"{figures['errors']:.0f} errors",
            file=sys.stderr,
        )
    before, after = max(sizes[:SETTLED]), max(sizes[-SETTLED:])
    flat = after <= before * (1 + MAX_GROWTH) + MARGIN_MIB
    print(f"resident memory {before:.1f} MiB, then {after:.1f} MiB: {'flat' if flat else 'GROWS'}")
    return flat


def _weigh(target: Target, group: Group, number: int) -> None:
    live, parked = (
        memory.per_request(group, target.ip, target.port, model, WEIGHED)
        for model in (target.model, "asleep")
    )
    print(
        f"{number:3}/{SLICES}  {live:.1f} KiB per live stream, {parked:.1f} per parked request",
        file=sys.stderr,
    )
