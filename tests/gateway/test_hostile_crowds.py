"""Thousands of idle connections: they cost memory that is bounded, and nobody else's time."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.gateway.test_hostile_http import address
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, Bench, bench, chat, stream

IDLE = 5000
FILES = 2 * IDLE + 500
"""Both ends of each connection are this process's."""
KIB_PER_CONNECTION = 10
"""Three of them are the gateway's (`python -m benchmarks.parked_memory`), the rest the client's."""
ASKED = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
TOKENS = 300


@contextmanager
def files(count: int) -> Iterator[None]:
    """So many may be open; every Linux in use allows it to any process that asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        most = hard if hard == resource.RLIM_INFINITY else max(hard, count)
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


async def idle_connection(where: tuple[str, int]) -> socket.socket:
    """One that has been answered and stays."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setblocking(False)
    await loop.sock_connect(client, where)
    await loop.sock_sendall(client, ASKED)
    assert (await loop.sock_recv(client, 4096)).startswith(b"HTTP/1.1 200 ")
    return client


async def cpu_of_a_stream(b: Bench) -> float:
    """Seconds of processor time that a stream takes, engine and client included."""
    async with b.http() as http:
        before = time.process_time()
        seen = await stream(http, CHAT, chat(max_tokens=TOKENS, ignore_eos=True))
        assert (seen.done, seen.clean) == (1, True)
        return time.process_time() - before


@pytest.mark.fault(59)
async def test_five_thousand_idle_connections_cost_memory_only_and_not_much_of_it() -> None:
    """Time is that of the processor, so that a busy machine does not matter."""
    clients: list[socket.socket] = []
    with files(FILES):
        async with bench(idle_timeout_s=600.0) as b:
            await b.tier("demo")
            await b.replica()
            try:
                alone = min([await cpu_of_a_stream(b) for _ in range(3)])
                before = resident_kib()
                for _ in range(IDLE // 100):
                    clients += await asyncio.gather(
                        *(idle_connection(address(b)) for _ in range(100))
                    )
                assert len(b.gateway.front.connections) == IDLE
                each_kib = (resident_kib() - before) / IDLE
                assert each_kib < KIB_PER_CONNECTION
                beside = min([await cpu_of_a_stream(b) for _ in range(3)])
                assert beside < 2 * alone
                assert (await asyncio.wait_for(idle_again(clients[17]), 10)).startswith(b"HTTP/1.1")
            finally:
                for client in clients:
                    client.close()
            await eventually(lambda: not b.gateway.front.connections, 30)


async def idle_again(client: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, ASKED)
    return await loop.sock_recv(client, 4096)


@pytest.mark.fault(59)
async def test_idle_connections_are_closed_by_the_hundred_when_their_time_is_over() -> None:
    async with bench(idle_timeout_s=1.0) as b:
        clients = await asyncio.gather(*(idle_connection(address(b)) for _ in range(500)))
        try:
            ended = [asyncio.get_running_loop().sock_recv(client, 1) for client in clients]
            assert set(await asyncio.wait_for(asyncio.gather(*ended), 30)) == {b""}
        finally:
            for client in clients:
                client.close()
        assert not b.gateway.front.connections
