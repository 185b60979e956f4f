"""An engine's /metrics page and its context window: what we read of it, and what we refuse to believe.

A scrape either yields sane numbers or raises `ScrapeFailed` with a reason that is counted.
Missing, negative and not-a-number are failures, never zero: a tier is not put to sleep because an
engine could not be read.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from spotinference import errors
from spotinference.core.latency import MAX_COUNT, Histogram, histogram

SCRAPE_DEADLINE_S = 2.0
MAX_PAGE_BYTES = 1 << 20
MAX_GAUGE = 1_000_000
"""More running or waiting requests than this in one engine is nonsense."""
MAX_WINDOW = 1 << 30
"""No context window is longer (tokens)."""
MAX_KV_USE = 1.01
"""It is a share: 1, and a rounding error."""
CONNECT_ATTEMPTS = 2
RETRY_WAIT_S = 0.1

RUNNING, WAITING = "running", "waiting"
FINISHED, REJECTED, PREEMPTED = "finished", "rejected", "preempted"
TOKENS, KV_USE = "tokens", "kv_use"
TTFT, ITL = "ttft", "itl"

ALIASES: Mapping[str, tuple[str, ...]] = {
    RUNNING: ("vllm:num_requests_running",),
    WAITING: ("vllm:num_requests_waiting",),
    FINISHED: ("vllm:request_success_total", "vllm:request_success"),
    REJECTED: ("vllm:admission_rejections_total", "vllm:admission_rejections"),
    PREEMPTED: ("vllm:num_preemptions_total", "vllm:num_preemptions"),
    TOKENS: ("vllm:generation_tokens_total", "vllm:generation_tokens"),
    KV_USE: ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
}
"""What we read: its names, the newest first. A page that has several counts by the first only.

Releases before 0.11 call the cache's use `gpu_cache_usage_perc`; counters lose `_total` where a
collector passes OpenMetrics on.
"""
HISTOGRAMS: Mapping[str, tuple[str, ...]] = {
    TTFT: ("vllm:time_to_first_token_seconds_bucket",),
    ITL: ("vllm:inter_token_latency_seconds_bucket", "vllm:time_per_output_token_seconds_bucket"),
}
"""The same for latencies. One that lies is left out: it says nothing about the load beside it."""
_REQUIRED = (RUNNING, WAITING)
_COUNTS = (FINISHED, REJECTED, PREEMPTED, TOKENS)
_WANTED = frozenset(name for names in ALIASES.values() for name in names)
_BUCKETS = frozenset(name for names in HISTOGRAMS.values() for name in names)
_BOUND = re.compile(r'[{,]\s*le="([^"]*)"')


class ScrapeFailed(errors.Retryable):
    """`reason` is one of a few words, for a metric's label."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class EngineLoad:
    running: int
    waiting: int
    finished_total: float
    rejected_total: float
    preempted_total: float = 0.0
    tokens_total: float = 0.0
    """output tokens"""
    kv_use: float | None = None
    """share of the KV cache in use, of the fullest engine of the pod; None: not told"""
    ttft: Histogram | None = None
    itl: Histogram | None = None
    """time to the first token, and between tokens; None: not told, or nonsense"""


def parse(page: bytes) -> EngineLoad:
    """The load of an engine, summed over its label sets; `ScrapeFailed` when anything is off."""
    found: dict[str, dict[str, float]] = {}
    buckets: dict[str, dict[str, tuple[float, float]]] = {}
    for line in page.decode("utf-8", "replace").splitlines():
        if not line.startswith("vllm:"):
            continue
        name = line.partition("{")[0].partition(" ")[0]
        labels = line.rpartition("}")[0]  # said twice it is still one series: the last one counts
        if name in _WANTED:
            found.setdefault(name, {})[labels] = _value(name, line)
        elif name in _BUCKETS:
            buckets.setdefault(name, {})[labels] = _bucket(line)
    values = {
        signal: next((list(found[name].values()) for name in names if name in found), [])
        for signal, names in ALIASES.items()
    }
    for signal in _REQUIRED:
        name = ALIASES[signal][0]
        if not values[signal]:
            raise ScrapeFailed("missing", f"{name} is not on the metrics page")
        if sum(values[signal]) > MAX_GAUGE:
            raise ScrapeFailed("absurd", f"{name} is {sum(values[signal])}")
    for signal in _COUNTS:
        if sum(values[signal]) > MAX_COUNT:
            raise ScrapeFailed("absurd", f"{ALIASES[signal][0]} is {sum(values[signal])}")
    kv_use = max(values[KV_USE], default=None)
    if kv_use is not None and kv_use > MAX_KV_USE:
        raise ScrapeFailed("absurd", f"{ALIASES[KV_USE][0]} is {kv_use}")
    return EngineLoad(
        running=round(sum(values[RUNNING])),
        waiting=round(sum(values[WAITING])),
        finished_total=sum(values[FINISHED]),
        rejected_total=sum(values[REJECTED]),
        preempted_total=sum(values[PREEMPTED]),
        tokens_total=sum(values[TOKENS]),
        kv_use=kv_use,
        ttft=_histogram(buckets, TTFT),
        itl=_histogram(buckets, ITL),
    )


def _histogram(
    buckets: Mapping[str, Mapping[str, tuple[float, float]]], signal: str
) -> Histogram | None:
    name = next((n for n in HISTOGRAMS[signal] if n in buckets), None)
    return None if name is None else histogram(buckets[name].values())


def _bucket(line: str) -> tuple[float, float]:
    """(upper bound, count); not a number where either is none: the histogram is left out."""
    bound, value = _BOUND.search(line), line.rpartition("}")[2].split()
    try:
        return float(bound[1] if bound else "nan"), float(value[0])
    except ValueError:
        return math.nan, math.nan


def _value(name: str, line: str) -> float:
    """Of one line of the exposition format; label values may hold spaces."""
    _, closed, tail = line.rpartition("}") if "{" in line else line.partition(" ")
    parts = tail.split()
    if not closed or not parts:
        raise ScrapeFailed("malformed", f"not a sample: {line[:80]!r}")
    try:
        value = float(parts[0])
    except ValueError as error:
        raise ScrapeFailed("malformed", f"{name} is {parts[0][:40]!r}") from error
    if not math.isfinite(value):
        raise ScrapeFailed("nan", f"{name} is {value}")
    if value < 0:
        raise ScrapeFailed("negative", f"{name} is {value}")
    return value


def parse_window(body: bytes, url: str) -> int:
    """max_model_len of the first model that /v1/models lists."""
    try:
        tokens = json.loads(body)["data"][0]["max_model_len"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise ScrapeFailed("missing", f"{url}: no max_model_len") from error
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 0 < tokens <= MAX_WINDOW:
        raise ScrapeFailed("absurd", f"{url}: max_model_len is {str(tokens)[:40]!r}")
    return tokens


def _url(host: str, port: int, path: str) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{path}"


class EngineClient:
    """Reads engines over one connection pool. No redirects, no decompression, bounded pages."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @classmethod
    def open(cls) -> EngineClient:
        return cls(
            aiohttp.ClientSession(
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=SCRAPE_DEADLINE_S),
                connector=aiohttp.TCPConnector(limit=256, keepalive_timeout=30),
                headers={"Accept-Encoding": "identity"},
            )
        )

    async def close(self) -> None:
        await self._session.close()

    async def load(self, host: str, port: int) -> EngineLoad:
        """One scrape within `SCRAPE_DEADLINE_S`, a dropped connection retried once."""
        return parse(await self._read(_url(host, port, "/metrics")))

    async def context_window(self, host: str, port: int) -> int:
        """Tokens of prompt and answer together, as `load`; `ScrapeFailed` when it does not tell."""
        url = _url(host, port, "/v1/models")
        return parse_window(await self._read(url), url)

    async def _read(self, url: str) -> bytes:
        try:
            async with asyncio.timeout(SCRAPE_DEADLINE_S):
                async for attempt in AsyncRetrying(
                    stop=stop_after_attempt(CONNECT_ATTEMPTS),
                    wait=wait_fixed(RETRY_WAIT_S),
                    retry=retry_if_exception_type(aiohttp.ServerDisconnectedError),
                    reraise=True,
                ):
                    with attempt:
                        return await self._page(url)
        except TimeoutError as error:
            raise ScrapeFailed("timeout", f"{url}: no answer in {SCRAPE_DEADLINE_S} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ScrapeFailed("connection", f"{url}: {type(error).__name__}: {error}") from error
        raise errors.Bug("tenacity returned without a result")

    async def _page(self, url: str) -> bytes:
        async with self._session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise ScrapeFailed("status", f"{url}: HTTP {response.status}")
            page = bytearray()
            async for chunk in response.content.iter_any():
                page += chunk
                if len(page) > MAX_PAGE_BYTES:
                    raise ScrapeFailed("too_large", f"{url}: more than {MAX_PAGE_BYTES} bytes")
            return bytes(page)
