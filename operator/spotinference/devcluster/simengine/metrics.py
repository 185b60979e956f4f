"""vLLM's series in Prometheus' text format, true to what the engine does."""

from __future__ import annotations

from collections.abc import Iterator

from spotinference.devcluster.simengine.engine import Engine

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
BLOCK_TOKENS = 16
KV_BLOCKS = 16384


def render(engine: Engine, model: str) -> str:
    """The body of /metrics."""
    return "".join(_lines(engine, model))


def _lines(engine: Engine, model: str) -> Iterator[str]:
    label = f'engine="0",model_name="{model}"'
    count = engine.counters
    used = sum((s.prompt_tokens + s.made) // BLOCK_TOKENS + 1 for s in engine.running)
    waiting = len(engine.waiting)
    yield from _one("num_requests_running", "gauge", label, len(engine.running))
    yield from _one("num_requests_waiting", "gauge", label, waiting)
    yield "# TYPE vllm:num_requests_waiting_by_reason gauge\n"
    yield f'vllm:num_requests_waiting_by_reason{{{label},reason="capacity"}} {waiting}.0\n'
    yield f'vllm:num_requests_waiting_by_reason{{{label},reason="deferred"}} 0.0\n'
    yield from _one("kv_cache_usage_perc", "gauge", label, min(1.0, used / KV_BLOCKS))
    yield from _one("prompt_tokens", "counter", label, count.prompt_tokens)
    yield from _one("prompt_tokens_cached", "counter", label, 0)
    yield from _one("generation_tokens", "counter", label, count.generation_tokens)
    yield from _one("prefix_cache_queries", "counter", label, count.prompt_tokens)
    yield from _one("prefix_cache_hits", "counter", label, 0)
    yield from _one("num_preemptions", "counter", label, 0)
    yield "# TYPE vllm:request_success counter\n"
    for reason, number in count.finished.items():
        labels = f'engine="0",finished_reason="{reason}",model_name="{model}"'
        yield f"vllm:request_success_total{{{labels}}} {number}.0\n"
    yield "# TYPE vllm:admission_rejections counter\n"
    for reason, number in (
        ("max_num_queued_reqs", count.rejected),
        ("max_num_queued_tokens", 0),
    ):
        labels = f'model_name="{model}",reason="{reason}"'
        yield f"vllm:admission_rejections_total{{{labels}}} {number}.0\n"
    yield from _histogram("time_to_first_token_seconds", label, count.first_token_s)
    yield from _histogram("inter_token_latency_seconds", label, count.inter_token_s)
    yield from _histogram("e2e_request_latency_seconds", label, count.end_to_end_s)
    yield from _histogram("request_queue_time_seconds", label, count.queue_s)


def _one(name: str, kind: str, label: str, value: float) -> Iterator[str]:
    yield f"# TYPE vllm:{name} {kind}\n"
    total = "_total" if kind == "counter" else ""
    yield f"vllm:{name}{total}{{{label}}} {float(value)}\n"


def _histogram(name: str, label: str, pair: list[float]) -> Iterator[str]:
    count, total = pair
    yield f"# TYPE vllm:{name} histogram\n"
    yield f'vllm:{name}_bucket{{{label},le="+Inf"}} {count}\n'
    yield f"vllm:{name}_count{{{label}}} {count}\n"
    yield f"vllm:{name}_sum{{{label}}} {total}\n"


def lie(mode: str, model: str) -> str:
    """A body that no scraper should believe: `nan`, `negative`, `inf`, `missing`, `garbage`."""
    label = f'engine="0",model_name="{model}"'
    if mode == "garbage":
        return "<html><body>it works</body></html>\n\x00{{{"
    if mode == "missing":
        return f"# TYPE vllm:other gauge\nvllm:other{{{label}}} 1.0\n"
    value = {"nan": "NaN", "negative": "-1.0", "inf": "+Inf"}[mode]
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    return "".join(f"# TYPE vllm:{n} gauge\nvllm:{n}{{{label}}} {value}\n" for n in names)
