"""One contract for two engines: what they disagree on, the simulated one has wrong.

A test names what it needs by its argument (`engine`, `pooling`, `parsing`, `thinking`, `seeing`) and
runs on each engine that can be set up so. One engine runs at a time: tests are sorted by set-up,
and a real vLLM takes gigabytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.support.engine import (
    REQUEST_DEADLINE_S,
    EngineClient,
    EngineServer,
    Kind,
    running_engine,
)
from tests.support.tiny import models

QUEUE_LIMIT = 4
ENGINES = [pytest.param("sim"), pytest.param("vllm", marks=pytest.mark.engine)]


@dataclass(frozen=True, slots=True)
class Setup:
    """How an engine is started."""

    flags: tuple[str, ...]
    model: str | None = None
    """of `tests.support.tiny`; None: the demo's. Only the real engine can load one."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("sim", "vllm") if self.model is None else ("vllm",)


PARSE_TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
TINY = ("--dtype", "float32", "--max-model-len", "512")
SETUPS = {
    "engine": Setup(("--max-num-queued-reqs", str(QUEUE_LIMIT))),
    "pooling": Setup(("--runner", "pooling", "--convert", "embed")),
    "parsing": Setup(PARSE_TOOLS),
    "thinking": Setup(
        (*TINY, *PARSE_TOOLS, "--reasoning-parser", "qwen3", "--enable-prompt-embeds"),
        "thinker",
    ),
    "seeing": Setup(TINY, "seer"),
}
"""By the name of the argument."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    named = [name for name in SETUPS if name in metafunc.fixturenames]
    if "server" not in metafunc.fixturenames or not named:
        return
    (name,) = named
    params = [
        pytest.param(f"{name} {kind}", marks=pytest.mark.engine if kind == "vllm" else ())
        for kind in SETUPS[name].kinds
    ]
    metafunc.parametrize("server", params, indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """So that each engine starts once; the order is random otherwise."""
    items.sort(key=_setup_of)


def _setup_of(item: pytest.Item) -> str:
    spec = getattr(item, "callspec", None)
    if spec is None or not item.path.is_relative_to(Path(__file__).parent):
        return ""
    return str(spec.params.get("server", ""))


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[EngineServer]:
    """The engine of the tests that run now; the one before it is gone."""
    name, kind = request.param.split()
    setup = SETUPS[name]
    weights = models.ensure(setup.model) if setup.model is not None else None
    with running_engine(kind, *setup.flags, weights=weights) as running:
        yield running


@pytest.fixture
async def client(server: EngineServer) -> AsyncIterator[EngineClient]:
    async with client_of(server) as client:
        yield client


@pytest.fixture
def engine(client: EngineClient) -> EngineClient:
    """An engine that generates, with a bounded queue."""
    return client


@pytest.fixture
def pooling(client: EngineClient) -> EngineClient:
    """An engine that embeds and scores, and generates nothing."""
    return client


@pytest.fixture
def parsing(client: EngineClient) -> EngineClient:
    """An engine with a tool parser."""
    return client


@pytest.fixture
def thinking(client: EngineClient) -> EngineClient:
    """A vLLM with a tool and a reasoning parser, and a model that thinks and calls tools."""
    return client


@pytest.fixture
def seeing(client: EngineClient) -> EngineClient:
    """A vLLM whose model takes pictures."""
    return client


class client_of:  # noqa: N801  (reads as a function)
    """A client with its own connections."""

    def __init__(self, server: EngineServer) -> None:
        self._server = server

    async def __aenter__(self) -> EngineClient:
        timeout = aiohttp.ClientTimeout(total=REQUEST_DEADLINE_S)
        self._session = aiohttp.ClientSession(
            timeout=timeout, connector=aiohttp.TCPConnector(limit=0, force_close=True)
        )
        return EngineClient(self._server, self._session)

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
