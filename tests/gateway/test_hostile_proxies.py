"""The gateway behind nginx and HAProxy: same verdicts, tokens one by one, cuts that stay cuts."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from spotinference.devcluster.simengine.faults import Fault
from tests.gateway.raw_table import CASES, SMUGGLED, Case, head, post
from tests.gateway.test_hostile_http import DEADLINES, address, seen_by
from tests.support import raw_http
from tests.support.eventually import eventually
from tests.support.gateway import bench, chat
from tests.support.proxies import proxy
from tests.support.raw_http import Address
from tests.support.scripted import DONE, Call, join, scripted, token

PROXIES = ("nginx", "haproxy")

_LINE_ENDS = {
    "chunk-size-space-after", "chunk-with-a-bare-lf", "last-chunk-with-a-bare-lf",
    "trailer-obs-fold", "bare-lf-everywhere", "bare-lf-in-a-header", "bare-lf-before-the-body",
    "version-1.2",
}  # fmt: skip
MENDED = {
    "nginx": _LINE_ENDS
    | {
        "trailer-20000", "trailer-without-a-colon", "name-of-utf-8", "name-with-a-colon-only",
        "absolute-form", "absolute-form-of-another-host", "version-long", "underscore",
        "underscore-x", "expect-something-else",
    }
    | {case.name for case in CASES if case.name.startswith("name-with-")} - {"name-with-a-space"},
    "haproxy": _LINE_ENDS
    | {
        "cl-and-te", "te-and-cl", "two-equal-lengths", "length-list", "obs-fold", "version-2.0",
        "host-twice-equal",
    },
}  # fmt: skip
"""What the proxy reads its own way and passes on well-formed; the engine sees that one request."""
TOO_MUCH = {
    "nginx": {"version-rtsp", "host-empty", "path-encoded-nul", "path-bad-percent", "method-TRACE",
              "authority-form-connect", "asterisk-options"},
    "haproxy": {"version-rtsp", "chunk-size-with-100k-zeros", "chunk-extension-of-100k",
                "absolute-form-of-another-host", "fragment"},
}  # fmt: skip
"""What the gateway takes, or knows no path for, and the proxy refuses itself."""
OTHER_PROTOCOLS = {"version-0.9", "http-2-preface"}
"""A proxy may answer these in a protocol that is not HTTP/1: no comparison."""


def complaint(
    name: str, case: Case, statuses: tuple[int, ...], seen: tuple[str, ...]
) -> str | None:
    """Why this may not be; a proxy that is stricter than the one at hand is none."""
    if SMUGGLED in seen:
        return "smuggled"
    if (statuses, seen) == (case.statuses, case.seen):
        return None
    refused = len(statuses) == 1 and 400 <= statuses[0] < 600 and not seen
    may_refuse = case.statuses[-1] == 400 or case.name in TOO_MUCH[name] | MENDED[name]
    if refused and may_refuse:
        return None
    if case.name in MENDED[name] and statuses == (200,) and seen == ("a",):
        return None
    return f"{statuses}, seen {seen}"


@pytest.mark.fault(57)
@pytest.mark.parametrize("name", PROXIES)
async def test_nothing_is_smuggled_past_a_proxy_and_the_gateway(name: str) -> None:
    async with bench(**DEADLINES) as b:
        await b.tier("demo")
        engine = await b.replica()
        found = {}
        async with proxy(name, address(b)) as front:
            for case in CASES:
                if case.name in OTHER_PROTOCOLS:
                    continue
                engine.sim.requests.clear()
                answers = await raw_http.exchange(front, case.payload, sentinel=case.sentinel)
                wrong = complaint(name, case, answers.statuses, seen_by(engine))
                if wrong:
                    found[case.name] = wrong
        assert found == {}


async def _streaming(front: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream has been asked for, by a client that would take a compressed one."""
    reader, writer = await asyncio.open_connection(*front)
    writer.write(post("Accept-Encoding: gzip", content=orjson.dumps(chat(max_tokens=40))))
    return reader, writer


@pytest.mark.parametrize("name", PROXIES)
async def test_every_token_passes_a_proxy_on_its_own(name: str) -> None:
    """In lock step: the engine speaks again only when the client has what it said before."""
    go_on = asyncio.Semaphore(0)
    count = 20

    async def answer(call: Call) -> None:
        await call.begin()
        for number in range(count):
            await call.send(token(number, text=f"<{number}>"))
            await go_on.acquire()
        await call.send(token(count, finish="stop") + DONE)
        await call.end()

    async with (
        bench() as b,
        scripted(answer) as port,
        proxy(name, address(b), _PROMPTLY[name]) as front,
    ):
        await b.tier("demo")
        await join(b, port)
        reader, writer = await _streaming(front)
        async with asyncio.timeout(20):
            for number in range(count):
                await reader.readuntil(f"<{number}>".encode())
                go_on.release()
            await reader.readuntil(b"[DONE]")
        writer.close()


_PROMPTLY = {"nginx": "", "haproxy": "option http-no-delay"}
"""Without it HAProxy holds each token for up to 200 ms, in the hope of more."""
_SILENCE_S = 1.0
_TIMEOUTS = {
    "nginx": f"proxy_read_timeout {_SILENCE_S:g}s;",
    "haproxy": f"timeout server {_SILENCE_S * 1000:g}",
}


@pytest.mark.fault(49)
@pytest.mark.parametrize("name", PROXIES)
async def test_heartbeats_carry_a_parked_stream_past_a_proxys_patience(name: str) -> None:
    async with (
        bench(fail_fast_s=0.1, heartbeat_s=0.2) as b,
        proxy(name, address(b), _TIMEOUTS[name]) as front,
    ):
        await b.tier("demo")
        reader, writer = await _streaming(front)
        for _ in range(10):  # ten of them take twice as long as the proxy would wait
            assert b"eta_seconds=" in await asyncio.wait_for(reader.readuntil(b"\n\n"), 30)
        await b.replica()
        answer = await asyncio.wait_for(reader.readuntil(b"[DONE]"), 30)
        assert b'"error"' not in answer
        writer.close()


@pytest.mark.fault(49)
@pytest.mark.parametrize("name", PROXIES)
async def test_without_heartbeats_the_same_proxy_gives_up(name: str) -> None:
    async with (
        bench(fail_fast_s=0.1, heartbeat_s=60.0) as b,
        proxy(name, address(b), _TIMEOUTS[name]) as front,
    ):
        await b.tier("demo")
        reader, writer = await _streaming(front)
        raw = await asyncio.wait_for(reader.read(), 10)
        assert not raw_http.parse(raw)[-1].whole
        writer.close()
        await eventually(lambda: b.parked() == 0, 5, "the gateway sees it go")


@pytest.mark.fault(37, 61)
@pytest.mark.parametrize(
    ("name", "version"),
    [(None, "HTTP/1.0"), (None, "HTTP/1.1"), ("nginx", "HTTP/1.1"), ("haproxy", "HTTP/1.1")],
)
async def test_an_answer_cut_by_the_gateway_is_no_whole_answer_behind_a_proxy(
    name: str | None, version: str
) -> None:
    """nginx asks in HTTP/1.0 by default, where a body ends when the connection does.

    A client of HTTP/1.0 behind a proxy is left out: the proxy itself closes without a reset.
    """
    async with bench(max_losses=0) as b:
        await b.tier("demo")
        engine = await b.replica()
        engine.sim.faults.plan = Fault(mode="rst", after_chunks=9, times=1)
        content = orjson.dumps(chat())
        request = head(f"Content-Length: {len(content)}", version=version) + content
        if name is None:
            raw, reset = await _read_to_the_end(address(b), request)
        else:
            async with proxy(name, address(b)) as front:
                raw, reset = await _read_to_the_end(front, request)
        (answer,) = raw_http.parse(raw)
        assert answer.status == 200
        assert b'"error"' in answer.body
        assert b"[DONE]" not in answer.body
        assert reset or not answer.whole, "an end like any other"


async def _read_to_the_end(front: Address, request: bytes) -> tuple[bytes, bool]:
    """All that came, and whether the connection was reset."""
    reader, writer = await asyncio.open_connection(*front)
    raw = bytearray()
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            while part := await reader.read(65536):
                raw += part
    except ConnectionResetError:
        return bytes(raw), True
    finally:
        writer.close()
    return bytes(raw), False
