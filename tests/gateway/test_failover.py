"""A stream that loses its replica goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from spotinference.api.kinds import Json
from spotinference.devcluster.simengine.faults import Fault
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, COMPLETION, Bench, Seen, bench, chat, completion, stream

WITH_USAGE = {"stream_options": {"include_usage": True}}
GREEDY: Json = dict(WITH_USAGE)
SEEDED: Json = {"temperature": 0.9, "seed": 7, **WITH_USAGE}
LOSSES = ["rst", "fin", "fin_mid_line", "clean_no_done", "done_no_finish", "error_event", "rst_all"]


def same(continued: Seen, undisturbed: Seen) -> None:
    """What the client sees is the undisturbed answer, under one identity."""
    assert continued.error is None, continued.error
    assert continued.clean
    assert continued.status == undisturbed.status == 200
    assert continued.text == undisturbed.text
    assert continued.finishes == undisturbed.finishes
    assert len(continued.finishes) == 1
    assert continued.roles == undisturbed.roles
    assert continued.done == undisturbed.done == 1
    assert continued.events[-1] == b"[DONE]"
    assert continued.usages == undisturbed.usages
    assert len(continued.identities) == 1
    assert b'token_ids":[' not in continued.raw


async def undisturbed(b: Bench, path: str, body: Json) -> Seen:
    async with b.http() as http:
        return await stream(http, path, body)


async def cut(b: Bench, path: str, body: Json, after: int, mode: Any = "rst") -> Seen:
    """The same request, its first replica failing after so many chunks."""
    first = next(engine for engine in b.engines.values() if engine.pod in b.routable())
    first.sim.faults.plan = Fault(mode=mode, after_chunks=after, times=1)
    async with b.http() as http:
        with b.preferring(first):
            return await stream(http, path, body)


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("path", [CHAT, COMPLETION], ids=["chat", "completion"])
async def test_a_stream_cut_after_any_token_is_byte_identical(path: str, params: Json) -> None:
    body = chat(**params) if path == CHAT else completion(**params)
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        await b.replica()
        whole = await undisturbed(b, path, body)
        assert len(whole.text) > 50
        for after in [0, 1, 2, 3, 5, 8, 13, 21, 34, 47, 58, 59]:
            same(await cut(b, path, body, after), whole)


@pytest.mark.parametrize("mode", LOSSES)
@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_a_stream_survives_every_kind_of_loss(mode: str, params: Json) -> None:
    body = chat(**params)
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        await b.replica()
        whole = await undisturbed(b, CHAT, body)
        same(await cut(b, CHAT, body, 17, mode), whole)
