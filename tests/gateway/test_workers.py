"""`gateway run --workers 2` as processes: one port, one voice, and nobody left behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from benchmarks.gateway import cluster

from spotinference.devcluster.processes import python_env
from spotinference.devcluster.simengine.options import SimOptions
from spotinference.devcluster.simengine.server import SimServer
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, chat

START_S = 150.0
"""Two interpreters on a machine that may be very busy."""


@dataclass(slots=True)
class Bench:
    process: asyncio.subprocess.Process
    http: str
    operational: str
    written: set[str]

    async def get(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(self.operational + path) as response,
        ):
            return response.status, await response.text()

    def workers(self) -> list[int]:
        """Process ids, as the kernel knows them."""
        file = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in file.read_text().split()]

    @asynccontextmanager
    async def client(self) -> AsyncIterator[aiohttp.ClientSession]:
        """Each request over a connection of its own, so that the kernel deals them out."""
        async with aiohttp.ClientSession(
            self.http,
            headers={"Authorization": f"Bearer {cluster.KEY}"},
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(60),
        ) as session:
            yield session


def command(folder: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "spotinference", "gateway", "run", "--workers", "2",
        "--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--id", "gw",
        "--announce", str(folder / "announce.json"), "--log-level", "warning", *more,
    ]  # fmt: skip


@asynccontextmanager
async def served(folder: Path, *, tokens_per_s: float = 0.0) -> AsyncIterator[Bench]:
    """Two workers in front of one simulated engine; all of it is gone afterwards."""
    sim = SimServer(
        replace(
            SimOptions(), served_names=("demo",), host="127.0.0.1", tokens_per_s=tokens_per_s,
            max_model_len=4096,
        )
    )  # fmt: skip
    await sim.start()
    objects = cluster.objects("127.0.0.1", sim.port)
    objects["inferencetiers"][2]["spec"]["wake"] = {"maxParked": 4}
    written: set[str] = set()
    with cluster.api_server(objects, folder, written) as kubeconfig:
        process = await asyncio.create_subprocess_exec(
            *command(
                folder, "--kubeconfig", str(kubeconfig), "--keys-file",
                str(cluster.keys_file(folder)),
            ),
            env={**os.environ, **python_env(), "SPOTINFERENCE_GATEWAY_WORKER_RESTART_S": "0.05"},
            start_new_session=True,
        )  # fmt: skip
        try:
            announced = folder / "announce.json"
            await eventually(announced.exists, START_S, "workers ready")
            told = json.loads(announced.read_text())
            yield Bench(process, told["http"], told["probes"], written)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            await sim.stop()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def plain(client: aiohttp.ClientSession, model: str = "demo") -> int:
    async with client.post(CHAT, json=chat(stream=False, model=model)) as response:
        await response.read()
        return response.status


async def test_two_workers_are_one_gateway_and_drain_together(tmp_path: Path) -> None:
    async with served(tmp_path, tokens_per_s=20) as bench, bench.client() as client:
        assert await bench.get("/readyz") == (200, "ok\n")
        assert await bench.get("/healthz") == (200, "ok\n")
        assert (await bench.get("/elsewhere"))[0] == 404
        body = chat(stream=False, max_tokens=1)
        for _ in range(40):
            async with client.post(CHAT, json=body) as response:
                assert response.status == 200
        _, page = await bench.get("/metrics")
        counts = re.findall(
            r'gateway_requests_total\{worker="(\d)",code="ok",tier="demo"\} (\S+)', page
        )
        assert {worker for worker, _ in counts} == {"0", "1"}
        assert sum(float(count) for _, count in counts) == 40
        assert "spotinference_gateway_worker_restarts_total 0.0" in page

        async with client.post(CHAT, json=chat(max_tokens=30)) as response:
            await response.content.readany()
            workers = bench.workers()
            bench.process.send_signal(signal.SIGTERM)
            rest = await response.content.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert await bench.process.wait() == 0
        assert not any(alive(pid) for pid in workers)


async def test_parked_requests_keep_the_tiers_bound_and_each_worker_asks_for_itself(
    tmp_path: Path,
) -> None:
    async with served(tmp_path) as bench, bench.client() as client:
        waiting = [asyncio.create_task(plain(client, "asleep")) for _ in range(40)]
        try:
            done: set[asyncio.Task[int]] = set()
            while len(done) < 36:
                done, _ = await asyncio.wait(
                    waiting, timeout=10, return_when=asyncio.FIRST_COMPLETED
                )
                waiting_left = [task for task in waiting if not task.done()]
                done = set(waiting) - set(waiting_left)
            assert {task.result() for task in done} == {429}
            assert sum(not task.done() for task in waiting) == 4

            def leases() -> set[str]:
                return {path.rpartition("/")[2] for path in bench.written if "leases" in path}

            await eventually(lambda: len(leases()) == 2, 5, "a demand Lease for each worker")
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_retry_and_a_resume_find_their_answer_in_whichever_worker_keeps_it(
    tmp_path: Path,
) -> None:
    async with served(tmp_path, tokens_per_s=100) as bench, bench.client() as client:
        body = chat(max_tokens=20, ignore_eos=True, temperature=1)
        ids = set()
        for _ in range(8):  # each over a connection of its own
            async with client.post(CHAT, json=body, headers={"Idempotency-Key": "k"}) as response:
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
                ids.add(response.headers["x-request-id"])
        assert len(ids) == 1
        named = {"x-spotinference-event-ids": "true"}
        async with client.post(CHAT, json=body, headers=named) as response:
            first = await response.content.readuntil(b"\n\n")
        last = first.split(b"\n")[0].removeprefix(b"id: ").decode()
        for _ in range(8):
            async with client.post(CHAT, headers={"Last-Event-ID": last}) as response:
                assert response.status == 200
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
        _, page = await bench.get("/metrics")
        counts = re.findall(r'requests_total\{worker="\d",code="ok",tier="demo"\} (\S+)', page)
        assert sum(float(count) for count in counts) == 2


async def test_a_worker_that_dies_is_started_again_while_the_other_serves(tmp_path: Path) -> None:
    async with served(tmp_path) as bench, bench.client() as client:
        victim, other = bench.workers()
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda: not alive(victim), 5)

        async def answered() -> bool:
            try:
                return await plain(client) == 200
            except aiohttp.ClientError:  # a connection that the dead one had not taken yet
                return False

        await eventually(answered, 5)
        assert (await bench.get("/healthz"))[0] == 200

        async def whole_again() -> bool:
            workers = bench.workers()
            ready = (await bench.get("/readyz"))[0] == 200
            return ready and len(workers) == 2 and victim not in workers

        deadline = asyncio.get_running_loop().time() + START_S
        while not await whole_again():
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)
        assert other in bench.workers()
        assert "spotinference_gateway_worker_restarts_total 1.0" in (await bench.get("/metrics"))[1]


async def test_no_worker_outlives_its_supervisor(tmp_path: Path) -> None:
    async with served(tmp_path) as bench:
        workers = bench.workers()
        bench.process.kill()
        await eventually(lambda: not any(alive(pid) for pid in workers), 10)


async def test_what_cannot_start_says_why_and_ends(tmp_path: Path) -> None:
    async def ended(*more: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            *command(tmp_path, *more), env={**os.environ, **python_env()},
            stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(START_S):
            out, err = await process.communicate()
        return process.returncode, (out + err).decode()

    code, said = await ended("--kubeconfig", str(tmp_path / "none.yaml"))
    assert code != 0
    assert "none.yaml" in said
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, said = await ended("--port", port)
    assert code != 0
    assert f"port {port} on 127.0.0.1" in said


def test_every_setting_reaches_a_worker(tmp_path: Path) -> None:
    from spotinference.gateway.config import GatewaySettings
    from spotinference.gateway.workers import Worker

    given: dict[str, Any] = {"workers": 4, "drain_s": 7.5, "max_connections": 1000, "id": "pod-1"}
    worker = Worker(2, GatewaySettings(**given), 8080, tmp_path, "info")
    variables = worker._environment()
    prefix = "SPOTINFERENCE_GATEWAY_"
    known = {f"{prefix}{name.upper()}" for name in GatewaySettings.model_fields}
    assert {name for name in variables if name.startswith(prefix)} <= known
    assert variables[f"{prefix}WORKER"] == "2"
    assert variables[f"{prefix}DRAIN_S"] == "7.5"
    assert variables[f"{prefix}MAX_CONNECTIONS"] == "250"
    assert variables[f"{prefix}RESTARTED"] == "false"
    assert variables[f"{prefix}ID"] == "pod-1"
