"""A workload for the autoscale simulator: requests and tokens in bins, spread over ticks.

The file is a CSV with the header `start_s,requests,prompt_tokens,output_tokens`, one row per bin.
Called by the simulator and its command; nothing here decides anything.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from spotinference import errors

COLUMNS = ("start_s", "requests", "prompt_tokens", "output_tokens")
MAX_BINS = 5_000_000
COMMON = 0.05
"""Of the widths: what is rarer may be equal by chance, where bins have no fixed width."""
MAX_SPAN_S = 366 * 86_400.0
"""A file whose bins span more than a year has its times in another unit."""


@dataclass(frozen=True, slots=True)
class Bin:
    start_s: float
    end_s: float
    requests: float
    prompt_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Per tick: whole requests (as they arrive), and the tokens they bring."""

    tick_s: float
    requests: list[float]
    prompt_tokens: list[float]
    output_tokens: list[float]


def load(path: Path) -> list[Bin]:
    """The bins of a workload file in order of time; gaps between them hold no request.

    A bin ends where the next begins, but is never longer than the usual one, so that a file may
    leave out empty bins (`_usual`). Raises `ConfigInvalid`, which names the line and the column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigInvalid(
            f"--workload {path}: {error}; name a readable CSV file"
        ) from error
    found = _rows(path, csv.reader(text.splitlines()))
    _, first = next(found, (0, []))
    header = [name.strip() for name in first]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise errors.ConfigInvalid(
            f"--workload {path}: column {missing[0]} is missing; "
            f"the first line must be {','.join(COLUMNS)}"
        )
    columns = [header.index(name) for name in COLUMNS]
    rows: list[tuple[float, float, float, float]] = []
    for number, row in found:
        values = [_number(path, number, row, column, header) for column in columns]
        start = values[0]
        if rows and start <= rows[-1][0]:
            raise errors.ConfigInvalid(
                f"--workload {path} line {number}: start_s is {start:g} after {rows[-1][0]:g}; "
                "sort the bins by time, one row per bin"
            )
        rows.append((start, values[1], values[2], values[3]))
        if len(rows) > MAX_BINS or start - rows[0][0] > MAX_SPAN_S:
            raise errors.ConfigInvalid(
                f"--workload {path} line {number}: more than {MAX_BINS} bins or than a year; "
                "start_s is in seconds; use wider bins or a part of the file"
            )
    if len(rows) < 2:
        raise errors.ConfigInvalid(f"--workload {path}: fewer than two bins; nothing to replay")
    return _bins(rows)


def spread(bins: list[Bin], tick_s: float) -> Arrivals:
    """The bins' requests, evenly over each bin and as whole requests where the bin's are whole.

    Whole, because three requests in ten minutes leave a tier idle between them, and a steady
    trickle of 0.005 requests per second does not.
    """
    origin = bins[0].start_s
    ticks = max(1, round((bins[-1].end_s - origin) / tick_s))
    requests = [0.0] * ticks
    prompt = [0.0] * ticks
    output = [0.0] * ticks
    for b in bins:
        if b.requests <= 0:
            continue
        for tick, count in _placed(b, origin, tick_s):
            at = min(tick, ticks - 1)
            requests[at] += count
            prompt[at] += b.prompt_tokens * count / b.requests
            output[at] += b.output_tokens * count / b.requests
    return Arrivals(tick_s, requests, prompt, output)


def _placed(b: Bin, origin: float, tick_s: float) -> list[tuple[int, float]]:
    first, last = (b.start_s - origin) / tick_s, (b.end_s - origin) / tick_s
    whole = b.requests == int(b.requests)
    found: list[tuple[int, float]] = []
    done = 0.0
    tick = int(first)
    while done < b.requests:
        share = min(1.0, (tick + 1 - first) / (last - first))
        upto = b.requests * share
        if whole and share < 1.0:
            upto = float(int(upto + 0.5))
        if upto > done:
            found.append((tick, upto - done))
            done = upto
        tick += 1
    return found


def _bins(rows: list[tuple[float, float, float, float]]) -> list[Bin]:
    widths = [after[0] - before[0] for before, after in pairwise(rows)]
    usual = _usual(widths)
    lengths = [min(width, usual) for width in widths] + [usual]
    return [
        Bin(start, start + length, requests, prompt, output)
        for (start, requests, prompt, output), length in zip(rows, lengths, strict=True)
    ]


def _usual(widths: list[float]) -> float:
    """The commonest width, the smallest of these; the median one where none is common.

    The median alone is too long where more bins are left out than not.
    """
    counts = Counter(round(width, 3) for width in widths)
    most = max(counts.values())
    if most == 1 or most < COMMON * len(widths):
        return sorted(widths)[len(widths) // 2]
    return min(width for width in widths if counts[round(width, 3)] == most)


def _rows(path: Path, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, with their numbers."""
    number = 0
    try:
        for row in reader:
            number += 1
            if row:
                yield number, row
    except csv.Error as error:
        raise errors.ConfigInvalid(
            f"--workload {path} line {number + 1}: {error}; name a readable CSV file"
        ) from error


def _number(path: Path, line: int, row: list[str], column: int, header: list[str]) -> float:
    text = row[column].strip() if column < len(row) else ""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < 1e15:
        raise errors.ConfigInvalid(
            f"--workload {path} line {line}: {header[column]} is {text!r}; "
            "it must be a number of at least 0"
        )
    return value
