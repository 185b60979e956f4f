"""A gateway with two replicas that are one engine: what is lost and what takes over are connections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from spotinference.api.kinds import POD, Json
from tests.support.cutter import Cutter
from tests.support.engine import EngineServer
from tests.support.eventually import eventually
from tests.support.gateway import Bench, bench

REASONING: Json = {"engine": {"reasoningParser": "qwen3"}}
MODEL = "/cache/weights/abc"
SETTINGS = frozenset({"gather_tokens"})


@asynccontextmanager
async def two_ways(
    server: EngineServer, second: EngineServer | None = None, *, model: str = MODEL,
    alter: tuple[bytes, bytes] | None = None, **more: Any,
) -> AsyncIterator[tuple[Bench, Cutter]]:  # fmt: skip
    """The first replica can be cut. The second may be another engine, serve another `model`, or get
    requests that are altered on their way. `more`: of the tier's spec, or settings of the gateway.
    """
    settings = {name: more.pop(name) for name in SETTINGS & more.keys()}
    near, far = Cutter(_port(server)), Cutter(_port(second or server))
    far.altered = alter
    async with bench(**settings) as b, near.serving(), far.serving():
        await b.tier("demo", **more)
        b.kube.put(POD, b.pod("first", "demo", near.port, model=MODEL))
        b.kube.put(POD, b.pod("second", "demo", far.port, model=model))
        await eventually(lambda: len(b.routable()) == 2, 5)
        yield b, near


def _port(server: EngineServer) -> int:
    return int(server.url.rpartition(":")[2])
