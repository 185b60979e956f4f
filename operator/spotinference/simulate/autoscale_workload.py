"""A workload for the autoscale simulator: requests and tokens in bins, spread over ticks.

The file is a CSV with the header `start_s,requests,prompt_tokens,output_tokens`, one row per bin.
Called by the simulator and its command; nothing here decides anything.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from spotinference import errors

COLUMNS = ("start_s", "requests", "prompt_tokens", "output_tokens")
MAX_BINS = 5_000_000
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

    A bin ends where the next begins, but is never longer than the usual (median) bin, so that a
    file may leave out empty bins. Raises `ConfigInvalid`, which names the line and the column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigInvalid(
            f"--workload {path}: {error}; name a readable CSV file"
        ) from error
    reader = csv.reader(text.splitlines())
    header = [name.strip() for name in next(reader, [])]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise errors.ConfigInvalid(
            f"--workload {path}: column {missing[0]} is missing; "
            f"the first line must be {','.join(COLUMNS)}"
        )
    columns = [header.index(name) for name in COLUMNS]
    rows: list[tuple[float, float, float, float]] = []
    for number, row in enumerate(reader, start=2):
        if not row:
            continue
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
    usual = sorted(widths)[len(widths) // 2]
    lengths = [min(width, usual) for width in widths] + [usual]
    return [
        Bin(start, start + length, requests, prompt, output)
        for (start, requests, prompt, output), length in zip(rows, lengths, strict=True)
    ]


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
