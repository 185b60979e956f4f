"""The engine's metrics page: believed when sane, refused with a reason otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from spotinference.clients import vllm
from spotinference.clients.vllm import EngineClient, EngineLoad, ScrapeFailed, parse, parse_window
from spotinference.controller import probes

PAGE = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a b {c}"} 3.0
vllm:num_requests_running{engine="1",model_name="a b {c}"} 2.0
vllm:num_requests_waiting{engine="0",model_name="demo"} 7.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="demo"} 40.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="demo"} 2.0
vllm:time_to_first_token_seconds_bucket{le="+Inf"} NaN
process_cpu_seconds_total 1.5
"""


def test_gauges_and_counters_are_summed_over_engines_and_reasons() -> None:
    assert parse(PAGE) == EngineLoad(running=5, waiting=7, finished_total=42.0, rejected_total=0.0)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"data": []}', b'{"data": [{"id": "m"}]}', b"[" * 100_000,
        *(b'{"data": [{"max_model_len": %s}]}' % n for n in (b"0", b"-1", b"true", b'"9"', b"1e9")),
        b'{"data": [{"max_model_len": 1099511627776}]}',
    ],
)  # fmt: skip
def test_a_context_window_is_a_sane_number_or_none(body: bytes) -> None:
    assert parse_window(b'{"data": [{"max_model_len": 2048}, {}]}', "") == 2048
    with pytest.raises(ScrapeFailed):
        parse_window(body, "")


def test_old_and_new_names_are_read_through_one_table_and_counted_once() -> None:
    extra = (
        b"vllm:gpu_cache_usage_perc 0.9\nvllm:num_preemptions_total 3\n"
        b'vllm:generation_tokens_total{engine="0"} 50\nvllm:generation_tokens_total 7\n'
        b'vllm:admission_rejections_total{reason="max_num_queued_reqs"} 4\n'
    )
    old = parse(PAGE + extra)
    assert old.kv_use == 0.9
    assert (old.preempted_total, old.tokens_total, old.rejected_total) == (3, 57, 4)
    both = parse(PAGE + extra + b"vllm:kv_cache_usage_perc 0.4\n")
    assert both.kv_use == 0.4
    assert parse(PAGE).kv_use is None


def test_latencies_are_read_under_old_and_new_names_and_added_up_over_engines() -> None:
    def page(name: str) -> bytes:
        rows = [
            f'vllm:{name}_bucket{{engine="{engine}",le="{bound}",model_name="le=\\"9\\""}} {count}\n'
            for engine in (0, 1)
            for bound, count in (("0.025", 3), ("0.05", 5), ("+Inf", 6))
        ]
        return "".join(rows).encode() + f"vllm:{name}_sum 3.0\nvllm:{name}_count 12\n".encode()

    new, old = "inter_token_latency_seconds", "time_per_output_token_seconds"
    for load in (parse(PAGE + page(new)), parse(PAGE + page(old))):
        assert load.itl is not None
        assert load.itl.bounds_s == (0.025, 0.05, math.inf)
        assert load.itl.counts == (6, 10, 12)
    both = parse(PAGE + page(new) + page(old))
    assert both.itl == parse(PAGE + page(new)).itl


@pytest.mark.fault(51)
def test_a_series_that_is_said_twice_counts_once() -> None:
    page = PAGE + PAGE + b'vllm:inter_token_latency_seconds_bucket{le="+Inf"} 4\n' * 2
    load = parse(page)
    assert (load.running, load.waiting, load.finished_total) == (5, 7, 42)
    assert load.itl is not None
    assert load.itl.counts == (4,)


@pytest.mark.fault(51)
@pytest.mark.parametrize("value", ["NaN", "-3", "many", "1e400", "1.7e308"])
def test_a_latency_that_lies_is_unknown_and_leaves_the_load_known(value: str) -> None:
    load = parse(PAGE + f'vllm:inter_token_latency_seconds_bucket{{le="+Inf"}} {value}\n'.encode())
    assert load.itl is None
    assert load.ttft is None
    assert load.running == 5


@pytest.mark.fault(51)
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"vllm:num_requests_waiting NaN", "nan"),
        (b"vllm:num_requests_waiting +Inf", "nan"),
        (b"vllm:num_requests_waiting -1", "negative"),
        (b"vllm:num_requests_waiting many", "malformed"),
        (b"vllm:num_requests_waiting", "malformed"),
        (b"vllm:num_requests_waiting{engine=", "malformed"),
        (b"vllm:num_requests_waiting 1e12", "absurd"),
        (b"vllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 7", "absurd"),
        (b"vllm:num_requests_waiting 0\nvllm:generation_tokens_total NaN", "nan"),
        (b"vllm:num_requests_waiting 0\nvllm:request_success_total 1.7e308", "absurd"),
        (
            b"vllm:num_requests_waiting 0\n"
            + b"".join(b'vllm:num_preemptions_total{e="%d"} 1.7e308\n' % e for e in (0, 1)),
            "absurd",
        ),
        (b"vllm:requests_waiting_by_another_name 3", "missing"),
        (b"", "missing"),
    ],
)
def test_a_lying_page_is_no_sample(line: bytes, reason: str) -> None:
    with pytest.raises(ScrapeFailed) as failed:
        parse(b"vllm:num_requests_running 1\n" + line + b"\n")
    assert failed.value.reason == reason


@pytest.mark.fault(51)
@given(st.binary(max_size=2000))
def test_any_bytes_are_a_sane_load_or_a_counted_failure(noise: bytes) -> None:
    reason, load = "", EngineLoad(0, 0, 0.0, 0.0)
    try:
        load = parse(PAGE + noise)
    except ScrapeFailed as failed:
        reason = failed.reason
    assert reason in {"", "nan", "negative", "malformed", "absurd", "missing"}
    assert load.running >= 0
    assert load.waiting >= 0


async def scrape(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> EngineLoad:
    app = web.Application()
    app.router.add_get("/metrics", handler)
    runner, url = await probes.serve(app, "127.0.0.1", 0)
    engines = EngineClient.open()
    try:
        return await engines.load("127.0.0.1", int(url.rpartition(":")[2]))
    finally:
        await engines.close()
        await runner.cleanup()


async def test_an_engine_is_read_over_http() -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(body=PAGE)

    assert (await scrape(page)).running == 5


@pytest.mark.fault(50)
async def test_an_endless_page_is_cut_at_the_cap() -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(2 * vllm.MAX_PAGE_BYTES // 65536):
            await response.write(b"#" * 65535 + b"\n")
        return response

    with pytest.raises(ScrapeFailed) as failed:
        await scrape(page)
    assert failed.value.reason == "too_large"


@pytest.mark.fault(50)
async def test_a_hanging_engine_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "SCRAPE_DEADLINE_S", 0.2)
    gone = asyncio.Event()

    async def page(_: web.Request) -> web.Response:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(gone.wait(), 5)
        return web.Response()

    async def load() -> None:
        try:
            await scrape(page)
        finally:
            gone.set()

    with pytest.raises(ScrapeFailed) as failed:
        await load()
    assert failed.value.reason == "timeout"


@pytest.mark.fault(50)
async def test_redirects_and_errors_are_no_samples() -> None:
    async def elsewhere(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/metrics"})

    async def broken(_: web.Request) -> web.Response:
        return web.Response(status=500, body=PAGE)

    for page in (elsewhere, broken):
        with pytest.raises(ScrapeFailed) as failed:
            await scrape(page)
        assert failed.value.reason == "status"


@pytest.mark.fault(50)
async def test_nobody_there_is_a_connection_failure() -> None:
    engines = EngineClient.open()
    try:
        with pytest.raises(ScrapeFailed) as failed:
            await engines.load("127.0.0.1", 1)
    finally:
        await engines.close()
    assert failed.value.reason == "connection"
