"""kill -9 of the gateway in the middle of a stream: what clients see, behind proxies too."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest
from benchmarks.gateway import cluster

from tests.gateway.raw_table import head
from tests.gateway.test_workers import served
from tests.support import raw_http
from tests.support.eventually import eventually
from tests.support.gateway import chat
from tests.support.proxies import proxy
from tests.support.raw_http import Address

FRONTS = {
    "no proxy": (None, ""),
    "nginx": ("nginx", ""),
    "nginx, proxy_http_version 1.1": ("nginx", "proxy_http_version 1.1;"),
    "haproxy": ("haproxy", "option http-no-delay"),
}
LOOKS_WHOLE = {"nginx"}
"""Its upstream is HTTP/1.0, where the end of the connection is the end of the answer."""


@asynccontextmanager
async def front(name: str, gateway: Address) -> AsyncIterator[Address]:
    program, extra = FRONTS[name]
    if program is None:
        yield gateway
        return
    async with proxy(program, gateway, extra) as found:
        yield found


def request() -> bytes:
    content = orjson.dumps(chat(max_tokens=4000, ignore_eos=True))
    return head(f"Content-Length: {len(content)}", "Connection: close", key=cluster.KEY) + content


@pytest.mark.parametrize("name", FRONTS)
async def test_a_gateway_killed_mid_stream_leaves_no_answer_that_says_it_is_finished(
    name: str, tmp_path: Path
) -> None:
    async with served(tmp_path, tokens_per_s=100) as bench:
        url = urlsplit(bench.http)
        assert url.hostname is not None
        assert url.port is not None
        async with front(name, (url.hostname, url.port)) as where:
            reader, writer = await asyncio.open_connection(*where)
            writer.write(request())
            raw = b""
            while raw.count(b'"content":"') < 5:
                raw += await asyncio.wait_for(reader.readuntil(b"\n\n"), 30)
            os.killpg(bench.process.pid, signal.SIGKILL)
            raw += await asyncio.wait_for(the_rest(reader), 30)
            writer.close()
            (answer,) = raw_http.parse(raw)
            assert answer.status == 200
            assert b"[DONE]" not in answer.body
            assert b'"finish_reason":"' not in answer.body
            assert answer.whole is (name in LOOKS_WHOLE)
            await bench.process.wait()
            if name != "no proxy":
                await eventually(lambda: refused(where), 20, "the proxy says that nobody is there")


async def the_rest(reader: asyncio.StreamReader) -> bytes:
    raw = bytearray()
    try:
        while part := await reader.read(65536):
            raw += part
    except ConnectionResetError:
        pass
    return bytes(raw)


async def refused(where: Address) -> bool:
    return (await raw_http.exchange(where, request())).statuses[0] in {502, 503}
