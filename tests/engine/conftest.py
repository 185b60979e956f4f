"""One contract for two engines: what they disagree on, the simulated one has wrong.

A test names what it needs by its argument (`engine`, `pooling`, `parsing`, `thinking`, ...) and
runs on each engine that can be set up so. Tests are sorted by set-up; the engine of the next set-up
starts while the tests of this one run, since a real vLLM takes half a minute to start (and
gigabytes, so no more than that one is ahead).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.support.engine import (
    REQUEST_DEADLINE_S,
    EngineClient,
    EngineServer,
    Kind,
    starting_engine,
)
from tests.support.tiny import models

QUEUE_LIMIT = 4


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
    "draining": Setup(("--shutdown-timeout", "120")),
    "hurrying": Setup(("--shutdown-timeout", "1")),
    "aborting": Setup(()),
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


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[_ORDER] = list(dict.fromkeys(filter(None, map(_setup_of, session.items))))


_ORDER = pytest.StashKey[list[str]]()


class Engines:
    """The engines of the set-ups, in the order in which their tests run."""

    def __init__(self, order: list[str]) -> None:
        self._order = order
        self._started: dict[str, tuple[ExitStack, EngineServer]] = {}

    @contextmanager
    def running(self, name: str) -> Iterator[EngineServer]:
        """The one of this set-up, ready; the next one starts meanwhile."""
        self._start(name)
        stack, server = self._started.pop(name)
        with stack:
            server.wait_ready()
            for following in self._order[self._order.index(name) + 1 :][:1]:
                self._start(following)
            yield server

    def _start(self, name: str) -> None:
        if name in self._started:
            return
        argument, _, word = name.partition(" ")
        setup = SETUPS[argument]
        (kind,) = (kind for kind in setup.kinds if kind == word)
        weights = models.ensure(setup.model) if setup.model is not None else None
        stack = ExitStack()
        server = stack.enter_context(starting_engine(kind, *setup.flags, weights=weights))
        self._started[name] = stack, server

    def close(self) -> None:
        for stack, _ in self._started.values():
            stack.close()


@pytest.fixture(scope="session")
def engines(pytestconfig: pytest.Config) -> Iterator[Engines]:
    engines = Engines(pytestconfig.stash[_ORDER])
    yield engines
    engines.close()


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, engines: Engines) -> Iterator[EngineServer]:
    """The engine of the tests that run now; the one before it is gone."""
    with engines.running(request.param) as running:
        yield running


@pytest.fixture
async def client(server: EngineServer) -> AsyncIterator[EngineClient]:
    timeout = aiohttp.ClientTimeout(total=REQUEST_DEADLINE_S)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        yield EngineClient(server, session)


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


@pytest.fixture
def draining(client: EngineClient) -> EngineClient:
    """An engine that has two minutes to finish what runs when it is told to stop."""
    return client


@pytest.fixture
def hurrying(client: EngineClient) -> EngineClient:
    """One that has a second."""
    return client


@pytest.fixture
def aborting(client: EngineClient) -> EngineClient:
    """One that has no time at all, which is the default."""
    return client
