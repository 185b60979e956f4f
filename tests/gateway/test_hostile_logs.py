"""Prompts, answers and keys are in no log record, no metric label and no file of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import structlog
from structlog.testing import capture_logs

from spotinference.core import chunks
from spotinference.devcluster.simengine.faults import Fault
from tests.gateway.raw_table import CASES, head
from tests.gateway.test_hostile_http import address
from tests.support import raw_http
from tests.support.eventually import eventually
from tests.support.gateway import (
    CHAT,
    COMPLETION,
    KEY,
    Bench,
    bench,
    chat,
    completion,
    stream,
)
from tests.support.scripted import DONE, Call, join, scripted, token

MARK = "mark7d1f"
"""In prompts, keys, headers, paths, model names and in what engines say."""
WRONG_KEY = f"sk-spot-{MARK}"


async def _post(http: aiohttp.ClientSession, path: str, **sent: Any) -> int:
    try:
        async with http.post(path, **sent) as response:
            await response.read()
            return response.status
    except aiohttp.ClientError:
        return 0


async def _ask_in_every_wrong_way(b: Bench, http: aiohttp.ClientSession) -> None:
    marked = {
        "X-Note": MARK,
        "User-Agent": MARK,
        "X-Request-Id": MARK,
        "Referer": f"http://{MARK}/",
    }
    assert await _post(http, CHAT, json=chat(MARK, stream=False, user=MARK), headers=marked) == 200
    assert await _post(http, f"{CHAT}?{MARK}={MARK}", json=chat(MARK)) == 200
    assert await _post(http, COMPLETION, json=completion(MARK)) == 200
    assert await _post(http, f"/v1/{MARK}", json=chat(MARK)) == 404
    assert await _post(http, CHAT, json=chat(MARK, model=MARK)) == 404
    assert await _post(http, CHAT, data=f'{{"{MARK}": ') == 400
    assert await _post(http, CHAT, json=chat(MARK, temperature=MARK)) == 400
    assert await _post(http, CHAT, json=chat(MARK, max_tokens=100_000)) == 400
    assert await _post(http, CHAT, json=[MARK]) == 400
    assert await _post(http, CHAT, data=MARK, headers={"Content-Encoding": MARK}) == 415
    wrong = {"Authorization": f"Bearer {WRONG_KEY}"}
    assert await _post(http, CHAT, json=chat(MARK), headers=wrong) == 401
    assert await _post(http, CHAT, json=chat(MARK), headers={"X_Note": MARK}) == 400


async def _send_every_malformed_message(b: Bench) -> None:
    for case in CASES:
        if case.statuses == (400,):
            payload = case.payload.replace(b'"a"', f'"{MARK}"'.encode())
            await raw_http.talk(address(b), payload + raw_http.SENTINEL)
    for line in (f"X-Note: {MARK}\x00", f"{MARK} note: x", f"Content-Length: {MARK}"):
        await raw_http.talk(address(b), head(line))
    await raw_http.talk(address(b), head("Transfer-Encoding: chunked") + MARK.encode() + b"\r\n")


async def _lose_answers(b: Bench, http: aiohttp.ClientSession) -> None:
    modes = (
        Fault(mode="rst", after_chunks=5, times=1), Fault(mode="error_event", times=1),
        Fault(mode="garbage", after_chunks=3, times=1), Fault(mode="done_no_finish", times=1),
        Fault(mode="status", status=500, body=f'{{"error":"{MARK}"}}', times=1),
        Fault(mode="status", status=400, body=f'{{"error":{{"message":"{MARK}"}}}}', times=1),
        Fault(mode="status", status=503, body=MARK, times=1),
        Fault(mode="content_type", times=1), Fault(mode="redirect", times=1),
    )  # fmt: skip
    for mode in modes:
        for streamed in (True, False):
            for engine in b.engines.values():
                engine.sim.faults.plan = mode
            await _post(http, CHAT, json=chat(MARK, stream=streamed))
    for engine in b.engines.values():
        engine.sim.faults.plan = Fault()
    arrived: list[bytes] = []
    leaving = asyncio.create_task(
        stream(http, CHAT, chat(MARK, max_tokens=3000, ignore_eos=True), arrived=arrived)
    )
    await eventually(lambda: len(arrived) > 1, 5)
    leaving.cancel()
    await asyncio.wait([leaving])


async def _let_an_engine_quote_the_prompt(b: Bench, http: aiohttp.ClientSession) -> None:
    error = orjson.dumps({"error": {"message": f"cannot serve {MARK}", "code": 500}})
    sayings = [
        [b"data: " + error + b"\n\n"],
        [token(0, text=MARK), b"data: " + error + b"\n\n"],
        [token(0, text=MARK), b"data: " + MARK.encode() + b"\n\n"],
        [token(0, text=MARK), DONE],
    ]

    async def script(call: Call) -> None:
        await call.begin()
        for event in sayings[-1]:
            await call.send(event)
        await call.end()

    for engine in list(b.engines.values()):
        await b.lose_node(engine)
    async with scripted(script) as port:
        await join(b, port)
        while sayings:
            with contextlib.suppress(aiohttp.ClientError):
                await _post(http, CHAT, json=chat(MARK))
            sayings.pop()


async def _run_into_a_bug(
    b: Bench, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise ValueError(f"what is {MARK}?")

    with monkeypatch.context() as patched:
        patched.setattr("spotinference.gateway.requests.parse", broken)
        assert await _post(http, CHAT, json=chat(MARK)) == 500
    hide, hidden = chunks.hide_token_ids, list[bytes]()

    def breaks_after_the_first(raw: bytes) -> bytes:
        hidden.append(raw)
        return hide(raw) if len(hidden) == 1 else broken(raw)

    with monkeypatch.context() as patched:
        patched.setattr(chunks, "hide_token_ids", breaks_after_the_first)
        await _post(http, CHAT, json=chat(MARK))


@pytest.mark.fault(63, 70)
async def test_no_prompt_and_no_key_is_in_a_log_a_metric_or_a_file(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    with capture_logs(processors=[structlog.processors.format_exc_info]) as records:
        async with bench(max_losses=1, eject_s=0.01, eject_max_s=0.02, usage_spool=tmp_path) as b:
            await b.tier("demo", wake={"cap": "1s", "budget": "1s"})
            async with b.http() as http:
                assert await _post(http, CHAT, json=chat(MARK, stream=False)) == 504
                await b.replica()
                await _run_into_a_bug(b, http, monkeypatch)
                await _ask_in_every_wrong_way(b, http)
                await _send_every_malformed_message(b)
                await _lose_answers(b, http)
                await _let_an_engine_quote_the_prompt(b, http)
            shown = b.gateway.context.metrics.render().decode()
            keys = b.keys_file.read_text()
    files = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert any("prompt_tokens" in text for text in files), "usage was recorded"
    files.append(keys)
    events = {record["event"] for record in records}
    assert {"request.bug", "answer.bug", "request.malformed", "replica.lost"} <= events
    foreign = [logging.Formatter().format(record) for record in caplog.records]
    for secret in (MARK, KEY):
        for record in records:
            assert secret not in repr(record)
        assert [text for text in foreign if secret in text] == []
        assert secret not in shown
        assert [text for text in files if secret in text] == []
