"""A sample of the continuation matrix on both engines: a gateway between, its connections cut.

One engine stands behind two addresses, so a lost "replica" is a cut connection, and the answer goes
on at the same engine by the other address.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from spotinference.api.kinds import POD, Json
from tests.engine.conftest import ENGINES, client_of
from tests.support.continuation import KINDS, Kind, heard
from tests.support.engine import EngineServer
from tests.support.eventually import eventually
from tests.support.gateway import Bench, Seen, bench, stream

pytestmark = pytest.mark.timeout(400)

SAMPLE = [kind for kind in KINDS if kind.real]
CUTS = (1, 12)
"""Events before the cut, the role chunk among them."""


class Cutter:
    """A TCP proxy that resets one connection after so many events of its answer."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = 0
        self.after: int | None = None
        """events of the next answer; None: nothing is cut"""
        self.cuts = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Cutter]:
        async with asyncio.TaskGroup() as group:
            open_: set[asyncio.Task[None]] = set()

            def connected(near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
                task = group.create_task(self._serve(near, back))
                open_.add(task)
                task.add_done_callback(open_.discard)

            server = await asyncio.start_server(connected, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            try:
                yield self
            finally:
                server.close()
                for task in list(open_):
                    task.cancel()

    async def _serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, forth = await asyncio.open_connection("127.0.0.1", self._to)
        asking = asyncio.create_task(_copy(near, forth))
        try:
            await self._answer(far, back)
        except ConnectionError:
            pass
        finally:
            asking.cancel()
            for writer in (forth, back):
                writer.transport.abort()

    async def _answer(self, far: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        seen = 0
        while data := await far.read(65536):
            seen += data.count(b"data: {")
            if self.after is not None and seen > self.after:
                self.after = None
                self.cuts += 1
                return
            back.write(data)
            await back.drain()


async def _copy(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            to.write(data)
            await to.drain()


@pytest.fixture(params=ENGINES)
def server(request: pytest.FixtureRequest) -> EngineServer:
    found: EngineServer = request.getfixturevalue(f"{request.param}_parsing_server")
    return found


@asynccontextmanager
async def two_ways(server: EngineServer, **settings: Any) -> AsyncIterator[tuple[Bench, Cutter]]:
    """A gateway with two replicas, the first of which can be cut."""
    port = int(server.url.rpartition(":")[2])
    async with (
        bench(**settings) as b,
        Cutter(port).serving() as first,
        Cutter(port).serving() as second,
    ):
        await b.tier("demo")
        b.kube.put(POD, b.pod("first", "demo", first.port))
        b.kube.put(POD, b.pod("second", "demo", second.port))
        await eventually(lambda: len(b.routable()) == 2, 5)
        yield b, first


def same(seen: Seen, whole: Seen, where: str) -> None:
    assert seen.error is None, f"{where}: {seen.error}"
    assert seen.clean, where
    mine, theirs = heard(seen.chunks), heard(whole.chunks)
    assert mine.keys() == theirs.keys(), where
    for index, choice in theirs.items():
        assert mine[index].same_as(choice), f"{where}:\n{mine[index]}\n{choice}"
    assert (seen.done, len(seen.identities)) == (1, 1), where
    assert seen.usages[-1:] == whole.usages[-1:], where


@pytest.mark.parametrize("kind", SAMPLE, ids=lambda kind: kind.name)
async def test_a_cut_answer_is_heard_as_if_undisturbed(server: EngineServer, kind: Kind) -> None:
    async with two_ways(server) as (b, first), b.http() as http:
        path, body = kind.endpoint.value, kind.body()
        whole = await stream(http, path, body)
        assert whole.status == 200, whole.raw
        if kind.stop:
            text = heard(whole.chunks)[0].text
            body = kind.body(text[len(text) // 2 :][:9])
            whole = await stream(http, path, body)
        for cut in CUTS:
            first.after = cut
            with b.preferring("first"):
                seen = await stream(http, path, body)
            same(seen, whole, f"cut after {cut}")
        assert first.cuts == len(CUTS)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("more", [{}, {"stop": ["a"]}], ids=["plain", "stop"])
async def test_a_gathered_answer_is_byte_for_byte_the_engines_own(
    server: EngineServer, path: str, more: Json
) -> None:
    """But for id and time; also when its replica is lost meanwhile."""
    prompt: Json = {"prompt": "once upon a time"}
    if "chat" in path:
        prompt = {"messages": [{"role": "user", "content": "tell me a story"}]}
    body = {"model": "demo", "temperature": 0, "max_tokens": 40, **prompt, **more}
    async with (
        two_ways(server, gather_tokens=1) as (b, first),
        b.http() as http,
        client_of(server) as engine,
    ):
        _, direct = await engine.post(path, body)
        for cut in (None, 9):
            first.after = cut
            with b.preferring("first"):
                async with http.post(path, json=body) as response:
                    assert response.headers["x-spotinference-continuation"] == "token"
                    raw = await response.read()
            answer = json.loads(raw)
            answer |= {"id": direct["id"], "created": direct["created"]}
            assert json.dumps(answer) == json.dumps(direct)
        assert first.cuts == 1 or "stop" in more


async def test_beam_search_is_not_streamed_by_the_engine(server: EngineServer) -> None:
    async with client_of(server) as engine:
        got = await engine.stream(prompt="once", max_tokens=4, use_beam_search=True, n=2)
        assert got.status == 400
        assert "beam search" in got.body
