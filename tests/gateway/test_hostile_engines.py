"""Engines that lie, in bytes: another replica is asked, or the client gets our own error."""

from __future__ import annotations

import asyncio
import gzip

import orjson
import pytest

from tests.gateway.test_edges import is_whole
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, Bench, Engine, bench, chat, stream
from tests.support.scripted import DONE, SSE, Call, Script, join, scripted, token

EVIL = b"EVIL"
"""In everything that a lying engine says: no byte of it may reach a client."""
FAST = {
    "first_byte_timeout_s": 0.5, "first_byte_floor_s": 0.5, "next_byte_timeout_s": 0.5,
    "next_byte_floor_s": 0.5, "answer_timeout_s": 1.0, "answer_floor_s": 1.0,
    "deadline_check_s": 0.05, "max_losses": 1, "connect_timeout_s": 0.5,
}  # fmt: skip
ERROR_CODES = {"engine_failed", "upstream_lost", "engine_busy"}


def answer(
    status: str = "200 OK", *headers: str, body: bytes = EVIL, length: int | None = None
) -> bytes:
    """A whole answer with its length."""
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {size}", "", ""]
    return "\r\n".join(lines).encode() + body


JSON = "Content-Type: application/json"
EVENTS = "Content-Type: text/event-stream"
WHOLE = orjson.dumps({"id": "x", "choices": [{"message": {"content": "EVIL"}}]})

LIES: dict[str, bytes] = {
    "html": answer("200 OK", "Content-Type: text/html"),
    "no-type": answer(),
    "another-type-besides": answer("200 OK", JSON, EVENTS, "Content-Type: text/html"),
    "redirect": answer("302 Found", "Location: http://169.254.169.254/latest/meta-data"),
    "redirect-307": answer("307 Temporary Redirect", "Location: http://127.0.0.1:1/"),
    "unauthorized": answer("401 Unauthorized", JSON),
    "status-500": answer("500 Internal Server Error", JSON),
    "status-999": answer("999 What", JSON),
    "status-204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "status-600-digits": b"HTTP/1.1 " + b"2" * 600 + b" OK\r\n\r\n",
    "switching-protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nEVIL",
    "gzip": answer("200 OK", JSON, "Content-Encoding: gzip", body=gzip.compress(WHOLE)),
    "gzip-bomb": answer("200 OK", JSON, "Content-Encoding: gzip", body=gzip.compress(b"0" * 10**7)),
    "gzip-as-transfer-coding": SSE.replace(b"chunked", b"gzip, chunked") + b"4\r\nEVIL\r\n0\r\n\r\n",
    "two-lengths": answer("200 OK", JSON, "Content-Length: 1", body=WHOLE),
    "length-and-chunks": SSE.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n") + b"4\r\nEVIL\r\n",
    "minus-length": answer("200 OK", JSON, length=-1),
    "chunk-size-garbage": SSE + b"zz\r\nEVIL\r\n",
    "chunk-size-endless": SSE + b"f" * 1000,
    "bare-lf": SSE.replace(b"\r\n", b"\n") + b"4\nEVIL\n0\n\n",
    "obs-fold": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n EVIL\r\nContent-Length: 4\r\n\r\nEVIL",
    "nul-in-a-header": b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 4\r\n\r\nEVIL",
    "no-http": b"EVIL\r\n\r\n",
    "tls": b"\x15\x03\x01\x00\x02\x02\x46",
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "http-0.9": b"<html>EVIL</html>",
    "nothing": b"",
    "half-a-head": b"HTTP/1.1 200 OK\r\nContent-Ty",
    "head-64k": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\nContent-Length: 4\r\n\r\nEVIL",
    "headers-5000": b"HTTP/1.1 200 OK\r\n" + b"X-Header-Name: EVIL\r\n" * 5000 + b"\r\n",
    "interim-answers-without-end": b"HTTP/1.1 100 Continue\r\nX: EVIL\r\n\r\n" * 10_000,
    "json-that-is-cut": answer("200 OK", JSON, body=WHOLE[:-5]),
    "json-that-is-none": answer("200 OK", JSON, body=b"EVIL"),
    "json-of-another-shape": answer("200 OK", JSON, body=b'["EVIL"]'),
    "shorter-than-it-says": answer("200 OK", JSON, body=WHOLE, length=len(WHOLE) + 100),
    "event-that-is-no-json": SSE + b"d\r\ndata: {EVIL}\n\n\r\n0\r\n\r\n",
    "event-that-is-an-array": SSE + b'10\r\ndata: ["EVIL"]\n\n\r\n0\r\n\r\n',
    "done-at-once": SSE + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n",
    "empty-stream": SSE + b"0\r\n\r\n",
}  # fmt: skip


def saying(data: bytes) -> Script:
    async def script(call: Call) -> None:
        await call.raw(data)
        call.writer.close()

    return script


@pytest.mark.fault(61, 62)
@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_a_lying_engine_is_left_for_another(lie: bytes, streamed: bool) -> None:
    async with bench(**FAST) as b, scripted(saying(lie)) as port:
        await b.tier("demo")
        honest = await b.replica()
        async with b.http() as http:
            expected = await stream(http, CHAT, chat())
            await join(b, port)
            with b.preferring(Engine("scripted", honest.sim)):
                if streamed:
                    is_whole(await asyncio.wait_for(stream(http, CHAT, chat()), 10), expected)
                    return
                async with http.post(CHAT, json=chat(stream=False)) as response:
                    body = await response.json()
                    assert response.status == 200
                assert body["choices"][0]["message"]["content"] == expected.text
        assert bugs(b) == 0


@pytest.mark.fault(61)
@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_a_lying_engine_alone_is_our_own_error(lie: bytes, streamed: bool) -> None:
    async with bench(**FAST) as b, scripted(saying(lie)) as port:
        await b.tier("demo", wake={"cap": "1s", "budget": "1s"})
        await join(b, port)
        async with (
            asyncio.timeout(10),
            b.http() as http,
            http.post(CHAT, json=chat(stream=streamed)) as response,
        ):
            raw = await response.read()
        assert response.status >= 500, raw
        error = orjson.loads(raw)["error"]
        assert error["code"] in ERROR_CODES, error
        assert EVIL not in raw
        assert EVIL.decode() not in str(response.headers)
        assert bugs(b) == 0


def bugs(b: Bench) -> float:
    return float(b.gateway.context.metrics.bugs._value.get())


@pytest.mark.fault(61)
async def test_what_follows_an_answer_is_nobodys_next_answer() -> None:
    """Two answers to one request, the second one for whoever uses the connection next."""
    poison = answer("200 OK", JSON, body=WHOLE)

    async def script(call: Call) -> None:
        await call.begin()
        await call.raw(
            b"".join(
                b"%x\r\n%s\r\n" % (len(event), event) for event in (token(0, finish="stop"), DONE)
            )
            + b"0\r\n\r\n"
            + poison
        )

    async with bench(**FAST) as b, scripted(script) as port:
        await b.tier("demo")
        await join(b, port)
        async with b.http() as http:
            for _ in range(3):
                seen = await stream(http, CHAT, chat())
                assert seen.done == 1
                assert EVIL not in seen.raw
                async with http.post(CHAT, json=chat(stream=False)) as response:
                    assert EVIL not in await response.read()


@pytest.mark.fault(61)
async def test_a_stream_of_single_bytes_is_the_same_stream() -> None:
    events = b"".join(token(n) for n in range(5)) + token(5, finish="stop") + DONE

    async def script(call: Call) -> None:
        await call.begin()
        for byte in events:
            call.writer.write(b"1\r\n%c\r\n" % byte)
            await asyncio.sleep(0)
        await call.end()

    async with bench() as b, scripted(script) as port:
        await b.tier("demo")
        await join(b, port)
        async with b.http() as http:
            seen = await stream(http, CHAT, chat())
        assert seen.text == "x" * 6
        assert seen.done == 1
        assert seen.clean


@pytest.mark.fault(61)
@pytest.mark.parametrize(
    "beginning",
    [b"HTTP/1.1 200 OK\r\nX: ", SSE + b"1;", SSE + b"0\r\nX: ", SSE + b"ffffff\r\ndata: "],
    ids=["header", "chunk-extension", "trailer", "event"],
)
async def test_a_line_without_end_is_given_up_at_its_bound(beginning: bytes) -> None:
    """Each of these would fill the memory while the deadline for silence sees no silence."""
    sent = 0

    async def script(call: Call) -> None:
        nonlocal sent
        await call.raw(beginning)
        while True:
            await call.raw(b"a" * 65536)
            sent += 65536

    async with bench(max_losses=0) as b, scripted(script) as port:
        await b.tier("demo", wake={"cap": "1s", "budget": "1s"})
        await join(b, port)
        async with (
            asyncio.timeout(20),
            b.http() as http,
            http.post(CHAT, json=chat()) as response,
        ):
            assert response.status >= 500
        assert sent < 40 * 1024 * 1024


@pytest.mark.fault(60)
async def test_a_client_that_leaves_ends_the_engines_work_at_any_moment() -> None:
    """Before the head, within it, before the first event, within one."""
    gone = asyncio.Semaphore(0)
    said = asyncio.Semaphore(0)
    turns = [b"", b"HTTP/1.1 200 OK\r\nConte", SSE, SSE + b"%x\r\ndata: " % 1000]

    async def script(call: Call) -> None:
        await call.raw(turns.pop())
        said.release()
        assert await call.reader.read() == b""
        gone.release()

    async with bench() as b, scripted(script) as port:
        await b.tier("demo")
        await join(b, port)
        while turns:
            async with b.http() as http:
                asking = asyncio.create_task(http.post(CHAT, json=chat()))
                await asyncio.wait_for(said.acquire(), 30)
                asking.cancel()
                await asyncio.wait([asking])
            await asyncio.wait_for(gone.acquire(), 30)
        await eventually(lambda: not b.gateway.server._running, 5)
