"""One worker of a gateway, as its supervisor keeps it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.metrics import Metrics
from spotinference.gateway.workers import Worker


async def test_a_worker_that_is_being_started_when_all_stop_is_stopped_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    create = asyncio.create_subprocess_exec

    async def slowly(*_: str, **more: Any) -> asyncio.subprocess.Process:
        begun.set()
        await go_on.wait()
        return await create(sys.executable, "-c", "import time; time.sleep(60)", **more)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slowly)
    worker = Worker(0, GatewaySettings(), 0, tmp_path, "info")
    keeping = asyncio.create_task(worker.keep(Metrics()))
    await begun.wait()
    await worker.stop()
    go_on.set()
    async with asyncio.timeout(10):
        await keeping
