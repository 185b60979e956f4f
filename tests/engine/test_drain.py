"""What an engine does when it is told to stop: the reasons why routing must stop before."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import pytest

from tests.engine.conftest import ENGINES, client_of
from tests.support.engine import MODEL, EngineClient, Json, Kind, events, running_engine
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(400)

CHAT: list[Json] = [{"role": "user", "content": "Tell me about spot machines."}]
LONG: Json = {"messages": CHAT, "max_tokens": 400, "temperature": 0, "ignore_eos": True}
SILENCE_S = 10.0


async def _first_event(engine: EngineClient, response: aiohttp.ClientResponse) -> None:
    assert response.status == 200
    async for _ in events(response):
        return


@pytest.mark.parametrize("kind", ENGINES)
async def test_draining_finishes_what_runs_and_refuses_what_is_new(kind: Kind) -> None:
    with running_engine(kind, "--shutdown-timeout", "120") as server:
        async with client_of(server) as engine, engine.open(**LONG) as response:
            await _first_event(engine, response)
            server.terminate()

            async def refuses() -> bool:
                status, answer = await engine.post(
                    "/v1/chat/completions", {"model": MODEL, "messages": CHAT, "max_tokens": 2}
                )
                return (
                    status == 500
                    and answer["error"]["message"] == "cannot schedule new futures after shutdown"
                )

            await eventually(refuses, 20, "new requests refused with 500")
            assert (await engine.get("/health"))[0] == 200

            # A prompt of tokens needs no tokenising, so it gets past that refusal: the answer is
            # empty, and must not pass for a finished one.
            tokens: Json = {"prompt": [20, 21, 22], "max_tokens": 5}
            _, whole = await engine.post("/v1/completions", {"model": MODEL, **tokens})
            assert whole["choices"][0]["finish_reason"] == "abort"
            assert whole["usage"]["completion_tokens"] == 0
            streamed = await engine.stream(**tokens)
            assert streamed.done
            assert streamed.text == ""
            assert streamed.finish_reasons == []

            rest = [event async for event in events(response)]
            assert rest[-1] == "[DONE]"
            assert '"finish_reason":"length"' in rest[-2]
        code = await asyncio.to_thread(server.process.wait, 60)
        assert code == 0


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("arguments", [(), ("--shutdown-timeout", "1")], ids=["abort", "drain"])
async def test_a_stream_that_a_shutdown_cuts_never_looks_finished(
    kind: Kind, arguments: tuple[str, ...]
) -> None:
    """Silence, a closed connection, or an error event and [DONE]: which is a race inside vLLM."""
    with running_engine(kind, *arguments) as server:
        async with (
            client_of(server) as engine,
            engine.open(**{**LONG, "max_tokens": 1900}) as response,
        ):
            await _first_event(engine, response)
            server.terminate()
            rest: list[str] = []
            stream = events(response)
            with contextlib.suppress(TimeoutError, StopAsyncIteration, aiohttp.ClientError):
                while True:
                    async with asyncio.timeout(SILENCE_S):
                        rest.append(await anext(stream))
        assert '"finish_reason":"' not in "".join(rest)
        if rest and rest[-1] == "[DONE]":
            assert rest[-2].startswith('{"error"')
            assert "EngineCore encountered an issue" in rest[-2]
        await asyncio.to_thread(server.process.wait, 60)
