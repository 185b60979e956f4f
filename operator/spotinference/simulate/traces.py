"""Spot traces: the capacity that one zone had, sampled at a fixed gap. Read, checked, cut, windowed.

A file is one zone: `{"metadata": {"gap_seconds": 300}, "data": [4, 4, 0, …]}`, the number of nodes
obtainable at each sample; a sample holds until the next one. Called by the commands and benchmarks.
"""

from __future__ import annotations

import codecs
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from spotinference import errors

MAX_FILE_BYTES = 256 * 1024 * 1024
"""A year of samples at one second is below it; what is larger is not a trace."""
LONGEST_GAP_S = 366 * 86_400.0
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Zone:
    """The capacity of one zone over time."""

    name: str
    gap_s: float
    capacity: tuple[int, ...]

    @property
    def place(self) -> str:
        """The cloud's name of the zone: files are called `us-east-1a_v100_1.json`."""
        return self.name.rsplit("/", 1)[-1].split("_", 1)[0]

    @property
    def span_s(self) -> float:
        return self.gap_s * len(self.capacity)

    def at(self, second: float) -> int:
        """Nodes obtainable at this second of the trace; the sample before it holds."""
        return self.capacity[min(int(second / self.gap_s), len(self.capacity) - 1)]


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of all zones, sampled at the simulator's tick."""

    start_s: float
    tick_s: float
    capacity: tuple[tuple[int, ...], ...]
    """[tick][zone], the history first"""
    history: int = 0
    """ticks before the window: what a policy that learns may have seen by then"""


def load(paths: Sequence[Path]) -> tuple[Zone, ...]:
    """The zones in the order of the files. Raises `errors.ConfigInvalid` with file and field."""
    if not paths:
        raise errors.ConfigInvalid("--trace: name at least one trace file, one per zone.")
    zones = tuple(_zone(path) for path in paths)
    names = [zone.name for zone in zones]
    if len(set(names)) < len(names):
        # Files of the same name in several folders are several zones.
        names = [f"{path.parent.name}/{path.stem}" for path in paths]
    counts: Counter[str] = Counter()
    unique = []
    for zone, name in zip(zones, names, strict=True):
        counts[name] += 1
        # And so is a file that is named again: policies tell zones apart by name.
        number = f"_{counts[name]}" if counts[name] > 1 else ""
        unique.append(Zone(name + number, zone.gap_s, zone.capacity))
    return tuple(unique)


def parse(name: str, text: bytes) -> Zone:
    """One zone from the bytes of its file."""
    try:
        found = orjson.loads(text.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        raise errors.ConfigInvalid(
            f'{name}: not JSON ({error}); a trace is {{"metadata": {{"gap_seconds": 300}}, '
            '"data": [0, 1, …]}.'
        ) from None
    metadata = found.get("metadata") if isinstance(found, dict) else None
    gap = metadata.get("gap_seconds") if isinstance(metadata, dict) else None
    if isinstance(gap, bool) or not isinstance(gap, int | float) or not math.isfinite(gap):
        raise errors.ConfigInvalid(
            f"{name}: metadata.gap_seconds is missing or no number; set the seconds between samples."
        )
    if not 0 < gap <= LONGEST_GAP_S:
        raise errors.ConfigInvalid(
            f"{name}: metadata.gap_seconds is {gap:g}; it must be above 0 and at most a year, in seconds."
        )
    data = found.get("data")
    if not isinstance(data, list) or not data:
        raise errors.ConfigInvalid(
            f"{name}: data is missing or empty; list the nodes obtainable at each sample."
        )
    return Zone(name, float(gap), tuple(_sample(name, i, value) for i, value in enumerate(data)))


def windows(
    zones: Sequence[Zone],
    *,
    count: int,
    hours: float,
    share: tuple[float, float],
    tick_s: float,
    history_hours: float = 0.0,
) -> Iterator[Window]:
    """`count` windows of `hours`, evenly spaced over this share of what all zones have in common.

    Each brings what of the trace lies before it, at most `history_hours`, be it outside the share.
    Made one by one, as a window with its history takes megabytes. Raises `errors.ConfigInvalid` at
    once if they do not fit.
    """
    common_s = min(zone.span_s for zone in zones)
    first_s, last_s = common_s * share[0], common_s * share[1]
    length_s = hours * HOUR_S
    room_s = last_s - first_s - length_s
    if room_s < 0:
        raise errors.ConfigInvalid(
            f"--window-hours {hours:g}: this share of the trace has {(last_s - first_s) / HOUR_S:.1f} "
            "hours in all zones; use a shorter window or a larger share (--from, --to)."
        )
    step_s = room_s / (count - 1) if count > 1 else 0.0
    return (
        _window(zones, first_s + step_s * i, length_s, tick_s, history_hours * HOUR_S)
        for i in range(count)
    )


def _window(
    zones: Sequence[Zone], start_s: float, length_s: float, tick_s: float, history_s: float
) -> Window:
    history = int(min(history_s, start_s) / tick_s)
    ticks = int(length_s / tick_s)
    capacity = tuple(
        tuple(zone.at(start_s + i * tick_s) for zone in zones) for i in range(-history, ticks)
    )
    return Window(start_s, tick_s, capacity, history)


def _zone(path: Path) -> Zone:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise errors.ConfigInvalid(f"--trace {path}: {size} bytes are too many for a trace.")
        text = path.read_bytes()
    except OSError as error:
        raise errors.ConfigInvalid(
            f"--trace {path}: {error.strerror or error}; name a trace file, one per zone."
        ) from None
    zone = parse(str(path), text)
    return Zone(path.stem, zone.gap_s, zone.capacity)


def _sample(name: str, index: int, value: Any) -> int:
    # true and false are 1 and 0: scripts that ask "is there a node?" write them so.
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise errors.ConfigInvalid(
            f"{name}: data[{index}] is {value!r}; write the nodes obtainable as a number."
        )
    if value < 0:
        raise errors.ConfigInvalid(
            f"{name}: data[{index}] is {value}; a capacity cannot be negative, write 0 for none."
        )
    return int(value)
