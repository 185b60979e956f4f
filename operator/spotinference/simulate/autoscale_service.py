"""What one replica can serve: a constant rate, or measured prompt and token times by batch size.

The unit of work is the second of a full replica: a request of the mix of its bin takes
`work(requests, prompt, output)` of them, so one queue holds requests of any size.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Protocol

from spotinference import errors

NOMINAL_CONCURRENCY = 8.0
"""Requests in flight on a full replica of the constant model; only its ratio to full matters."""


class Service(Protocol):
    @property
    def concurrency(self) -> float:
        """Requests in flight on a full replica."""

    def work(self, requests: float, prompt_tokens: float, output_tokens: float) -> float:
        """Replica-seconds that these requests take on full replicas."""

    def running(self, share: float) -> float:
        """Requests in flight on a replica that serves `share` (0 to 1) of what it can."""


@dataclass(frozen=True, slots=True)
class ConstantRate:
    requests_per_s: float
    concurrency: float = NOMINAL_CONCURRENCY

    def work(self, requests: float, prompt_tokens: float, output_tokens: float) -> float:  # noqa: ARG002
        return requests / self.requests_per_s

    def running(self, share: float) -> float:
        return share * self.concurrency


@dataclass(frozen=True, slots=True)
class Measured:
    """`prompt_s`: seconds of prefill by prompt length; `token_s`: seconds per token by batch size.

    A full replica decodes the largest measured batch; prefill of one request holds up the others
    (no chunked prefill), so a request takes prompt_s + output x token_s(batch) / batch of it.
    """

    prompt_s: tuple[tuple[float, float], ...]
    token_s: tuple[tuple[float, float], ...]

    @property
    def concurrency(self) -> float:
        return self.token_s[-1][0]

    def work(self, requests: float, prompt_tokens: float, output_tokens: float) -> float:
        if requests <= 0:
            return 0.0
        batch, token = self.token_s[-1]
        prefill = interpolated(self.prompt_s, prompt_tokens / requests)
        return requests * prefill + output_tokens * token / batch

    def running(self, share: float) -> float:
        """Decode rate batch / token_s(batch) grows with the batch: the batch that gives `share`."""
        batch, token = self.token_s[-1]
        wanted = share * batch / token
        before = (0.0, 0.0)
        for size, seconds in self.token_s:
            rate = size / seconds
            if rate >= wanted:
                part = (wanted - before[1]) / (rate - before[1]) if rate > before[1] else 1.0
                return before[0] + part * (size - before[0])
            before = (size, max(rate, before[1]))
        return batch


def interpolated(points: tuple[tuple[float, float], ...], x: float) -> float:
    """Between the points, along the last two beyond them; the first one's value below it."""
    if x <= points[0][0] or len(points) == 1:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    (x0, y0), (x1, y1) = points[-2:]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def load(path: Path, of: str | None = None) -> Measured:
    """Times from a file with the columns of Splitwise's and SageServe's measurements.

    `of`: MODEL/HARDWARE/TENSOR_PARALLEL where a file holds several; default: its first. Times may
    be in seconds or milliseconds, `token_time` per token or per answer: told apart by `e2e_time`
    and by size (no engine takes longer than one second, or less than one ms, per token at batch 1).
    """
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise errors.ConfigInvalid(f"--service-model {path}: {error}") from error
    by_kind: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        kind = "/".join(row.get(c) or "?" for c in ("model", "hardware", "tensor_parallel"))
        by_kind.setdefault(kind, []).append(row)
    kind = of or next(iter(by_kind), "")
    if kind not in by_kind:
        raise errors.ConfigInvalid(
            f"--service-of {kind!r}: {path} has {', '.join(by_kind) or 'no rows'}"
        )
    try:
        return _measured(by_kind[kind])
    except (KeyError, ValueError, ZeroDivisionError, TypeError) as error:
        raise errors.ConfigInvalid(
            f"--service-model {path}: {error!r}; it needs the numeric columns prompt_size, "
            "batch_size, token_size, prompt_time and e2e_time"
        ) from error


def _measured(rows: list[dict[str, str]]) -> Measured:
    prompt: dict[float, list[float]] = {}
    token: dict[float, list[float]] = {}
    smallest = min(float(r["batch_size"]) for r in rows)
    usual_prompt = _commonest([float(r["prompt_size"]) for r in rows])
    usual_answer = _commonest([float(r["token_size"]) for r in rows])
    for row in rows:
        batch, size, answer = (float(row[c]) for c in ("batch_size", "prompt_size", "token_size"))
        first = float(row["prompt_time"])
        if answer != usual_answer:
            continue
        if batch == smallest:
            prompt.setdefault(size, []).append(first)
        if size == usual_prompt:
            token.setdefault(batch, []).append((float(row["e2e_time"]) - first) / answer)
    tokens = {batch: median(values) for batch, values in token.items()}
    # Beyond the batch with the highest rate an engine swaps: it is not run there.
    best = max(tokens, key=lambda batch: batch / tokens[batch])
    unit = 1e-3 if tokens[smallest] > 1.0 else 1.0
    return Measured(
        prompt_s=tuple((size, unit * median(v)) for size, v in sorted(prompt.items())),
        token_s=tuple((batch, unit * v) for batch, v in sorted(tokens.items()) if batch <= best),
    )


def _commonest(values: list[float]) -> float:
    return max(set(values), key=lambda v: (values.count(v), -v))
