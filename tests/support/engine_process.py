"""The simulated engine as a process of its own: what SIGKILL and SIGTERM look like from outside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from spotinference.devcluster.simengine import model

START_DEADLINE_S = 20.0
_LISTENS = re.compile(rb"Application startup complete\. http://127\.0\.0\.1:(\d+)")


@dataclass(slots=True)
class EngineProcess:
    port: int
    process: asyncio.subprocess.Process

    async def faults(self, **plan: object) -> None:
        url = f"http://127.0.0.1:{self.port}/_sim/faults"
        async with aiohttp.ClientSession() as session, session.post(url, json=plan) as response:
            assert response.status == 200, await response.text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def exit_code(self, deadline_s: float = 10) -> int:
        return await asyncio.wait_for(self.process.wait(), deadline_s)


@asynccontextmanager
async def engine_process(folder: Path, *args: str, **env: str) -> AsyncIterator[EngineProcess]:
    """A process that listens on a port of its choice; killed with its group at the end."""
    weights = folder / "weights"
    if not weights.exists():
        model.write_tiny_repo(weights)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "spotinference.devcluster.simengine", "serve", str(weights),
        "--host", "127.0.0.1", "--port", "0", "--served-model-name", "demo",
        "--max-model-len", "4096", *args,
        env={**os.environ, "PYTHONPATH": "operator", **env},
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        seen = b""
        async with asyncio.timeout(START_DEADLINE_S):
            while not (found := _LISTENS.search(seen)):
                line = await process.stderr.readline()
                assert line, f"the engine ended: {seen.decode()}"
                seen += line
        drain = asyncio.create_task(process.stderr.read())
        yield EngineProcess(int(found[1]), process)
        drain.cancel()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
