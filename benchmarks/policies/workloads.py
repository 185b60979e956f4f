"""Public workload traces as CSVs that `spotinference simulate autoscale --workload` reads.

    python -m benchmarks.policies.workloads --traces DIR --out DIR [--bin 10]

Writes `start_s,requests,prompt_tokens,output_tokens` in bins for
- each client of ServeGen m-small (14 days; Alibaba Model Studio) and all of them together at
  one hundredth of their rates: arrivals drawn per 600 s window from a gamma renewal process with
  the window's rate and coefficient of variation (from 20 requests per bin on: its normal limit),
  seeded by the client's name;
- the Azure conversation service (58 minutes) and Mooncake's conversations (59 minutes): as recorded.

ServeGen's rate files name no tokens: PROMPT_TOKENS and OUTPUT_TOKENS stand in for them.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import zlib
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PROMPT_TOKENS, OUTPUT_TOKENS = 512, 256
WINDOW_S = 600
WHOLE_SCALE = 0.01
"""All clients together make 1,174 requests/s: a hundredth is a tier of some six replicas."""
MANY = 20.0
"""From this many requests in a bin, over the squared variation, counts are drawn as normal."""
AZURE = "azure-llm-2023/data/AzureLLMInferenceTrace_conv.csv"
MOONCAKE = "mooncake/conversation_trace.jsonl"
SERVEGEN = "servegen/m-small"

Counts = NDArray[np.float64]


def servegen_client(path: Path, bin_s: int, scale: float = 1.0) -> Counts:
    """Requests per bin of one client."""
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    rows = [[float(v or 0) for v in row[:3]] for row in csv.reader(path.read_text().splitlines())]
    per_window = WINDOW_S // bin_s
    counts = np.zeros(len(rows) * per_window)
    for number, (_, rate, cv) in enumerate(rows):
        if rate * scale <= 0:
            continue
        counts[number * per_window : (number + 1) * per_window] = _counts(
            rng, rate * scale, max(cv, 0.05), per_window
        )
    return counts


def _counts(rng: np.random.Generator, rate: float, cv: float, bins: int) -> Counts:
    """Requests in each bin of one window; where a bin holds very many, their normal limit."""
    mean = rate * WINDOW_S / bins
    if mean > MANY * cv**2:
        return np.maximum(0.0, np.round(rng.normal(mean, cv * mean**0.5, bins)))
    found, _ = np.histogram(_arrivals(rng, rate, cv), bins=bins, range=(0, WINDOW_S))
    return found.astype(np.float64)


def _arrivals(rng: np.random.Generator, rate: float, cv: float) -> NDArray[np.float64]:
    """Arrival times in one window; a renewal process in equilibrium, so it starts at random."""
    shape = 1 / cv**2
    mean = 1 / rate
    lead = max(WINDOW_S, 50 * mean * cv**2)
    start = -lead * rng.random()
    times: list[NDArray[np.float64]] = []
    while start < WINDOW_S:
        draws = 64 + int(rate * (WINDOW_S - start) * 1.1)
        part = start + np.cumsum(rng.gamma(shape, mean / shape, draws))
        times.append(part)
        start = float(part[-1])
    every = np.concatenate(times)
    return every[(every >= 0) & (every < WINDOW_S)]


def azure(path: Path) -> list[tuple[float, float, float]]:
    """(seconds, prompt tokens, output tokens) of each request."""
    found = []
    for row in csv.DictReader(path.read_text().splitlines()):
        at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
        found.append((at, float(row["ContextTokens"]), float(row["GeneratedTokens"])))
    return found


def mooncake(path: Path) -> list[tuple[float, float, float]]:
    rows = map(json.loads, path.read_text().splitlines())
    return [(r["timestamp"] / 1000, r["input_length"], r["output_length"]) for r in rows]


def write_counts(path: Path, counts: Counts, bin_s: int) -> None:
    write(path, ((n, n * PROMPT_TOKENS, n * OUTPUT_TOKENS) for n in counts), bin_s)


def write_requests(path: Path, requests: list[tuple[float, float, float]], bin_s: int) -> None:
    first = min(at for at, _, _ in requests)
    last = max(at for at, _, _ in requests)
    bins = np.zeros((int((last - first) // bin_s) + 1, 3))
    for at, prompt, output in requests:
        bins[int((at - first) // bin_s)] += (1, prompt, output)
    write(path, (tuple(row) for row in bins), bin_s)


def write(path: Path, rows: Iterable[tuple[float, ...]], bin_s: int) -> None:
    with path.open("w") as file:
        file.write("start_s,requests,prompt_tokens,output_tokens\n")
        for number, (requests, prompt, output) in enumerate(rows):
            file.write(f"{number * bin_s},{requests:g},{prompt:.0f},{output:.0f}\n")


def convert(traces: Path, out: Path, bin_s: int) -> list[Path]:
    """Writes every workload that is not there yet; their files, sorted by name."""
    out.mkdir(parents=True, exist_ok=True)
    clients = sorted((traces / SERVEGEN).glob("*-trace.csv"))
    whole: Counts | None = None
    for path in clients:
        number = int(re.findall(r"\d+", path.name)[0])
        target = out / f"servegen-{number:02d}.csv"
        if not target.exists():
            write_counts(target, servegen_client(path, bin_s), bin_s)
    target = out / "servegen-all.csv"
    if clients and not target.exists():
        for path in clients:
            counts = servegen_client(path, bin_s, WHOLE_SCALE)
            whole = counts if whole is None else whole + counts
        assert whole is not None
        write_counts(target, whole, bin_s)
    for name, source, read in (("azure", AZURE, azure), ("mooncake", MOONCAKE, mooncake)):
        if (traces / source).exists() and not (out / f"{name}.csv").exists():
            write_requests(out / f"{name}.csv", read(traces / source), bin_s)
    return sorted(out.glob("*.csv"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces/workload"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bin", type=int, default=10, help="seconds; must divide 600")
    options = parser.parse_args()
    if not options.traces.is_dir():
        print(f"no folder {options.traces}: name the traces' folder with --traces")
        return 1
    for path in convert(options.traces, options.out, options.bin):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
