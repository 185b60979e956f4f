"""Every test here runs against both engines: what they disagree on, the simulated one has wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from tests.support.engine import REQUEST_DEADLINE_S, EngineClient, EngineServer, running_engine

QUEUE_LIMIT = 4
PARSING = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
POOLING = ("--runner", "pooling", "--convert", "embed")
ENGINES = [pytest.param("sim"), pytest.param("vllm", marks=pytest.mark.engine)]


@pytest.fixture(scope="session")
def sim_server() -> Iterator[EngineServer]:
    with running_engine("sim", "--max-num-queued-reqs", str(QUEUE_LIMIT)) as server:
        yield server


@pytest.fixture(scope="session")
def vllm_server() -> Iterator[EngineServer]:
    with running_engine("vllm", "--max-num-queued-reqs", str(QUEUE_LIMIT)) as server:
        yield server


@pytest.fixture(params=ENGINES)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[EngineClient]:
    """A client of one engine, shared by all tests of the session."""
    server = request.getfixturevalue(f"{request.param}_server")
    async with client_of(server) as client:
        yield client


@pytest.fixture(scope="session")
def sim_pooling_server() -> Iterator[EngineServer]:
    with running_engine("sim", *POOLING) as server:
        yield server


@pytest.fixture(scope="session")
def vllm_pooling_server() -> Iterator[EngineServer]:
    with running_engine("vllm", *POOLING) as server:
        yield server


@pytest.fixture(params=ENGINES)
async def pooling(request: pytest.FixtureRequest) -> AsyncIterator[EngineClient]:
    """A client of an engine that embeds and scores, and generates nothing."""
    server = request.getfixturevalue(f"{request.param}_pooling_server")
    async with client_of(server) as client:
        yield client


@pytest.fixture(scope="session")
def sim_parsing_server() -> Iterator[EngineServer]:
    with running_engine("sim", *PARSING) as server:
        yield server


@pytest.fixture(scope="session")
def vllm_parsing_server() -> Iterator[EngineServer]:
    with running_engine("vllm", *PARSING) as server:
        yield server


@pytest.fixture(params=ENGINES)
async def parsing(request: pytest.FixtureRequest) -> AsyncIterator[EngineClient]:
    """A client of an engine with a tool parser."""
    server = request.getfixturevalue(f"{request.param}_parsing_server")
    async with client_of(server) as client:
        yield client


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
