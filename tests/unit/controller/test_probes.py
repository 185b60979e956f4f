"""Probes tell the truth: red when the loop or the queue stands still."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from spotinference import errors
from spotinference.clients.clock import SystemClock
from spotinference.controller import probes
from spotinference.controller.metrics import Metrics
from spotinference.controller.probes import STALL_S, Heartbeat
from tests.support.virtual_time import VirtualClock, virtual_time


@virtual_time
async def test_a_turning_loop_is_healthy(clock: VirtualClock) -> None:
    it = Heartbeat(clock, lambda: 0.0)
    task = asyncio.create_task(it.run())
    await asyncio.sleep(3 * STALL_S)
    assert it.sickness() is None
    task.cancel()


@virtual_time
async def test_a_heart_that_stopped_beating_is_sick(clock: VirtualClock) -> None:
    it = Heartbeat(clock, lambda: 0.0)
    task = asyncio.create_task(it.run())
    await asyncio.sleep(10)
    task.cancel()
    await asyncio.sleep(STALL_S + 1)
    assert "event loop" in (it.sickness() or "")


@virtual_time
async def test_a_queue_that_does_not_move_is_sick(clock: VirtualClock) -> None:
    assert "work queue" in (Heartbeat(clock, lambda: STALL_S + 1).sickness() or "")


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def test_probes_answer_200_or_503_with_the_reason() -> None:
    problem: list[str] = []
    app = probes.probe_app(lambda: None, lambda: problem[0] if problem else None)
    runner, url = await probes.serve(app, "127.0.0.1", 0)
    try:
        assert await get(f"{url}/readyz") == (200, "ok\n")
        problem.append("the first lists are not complete yet")
        assert await get(f"{url}/readyz") == (503, "the first lists are not complete yet\n")
        assert await get(f"{url}/healthz") == (200, "ok\n")
    finally:
        await runner.cleanup()


async def test_metrics_are_refreshed_when_asked() -> None:
    metrics = Metrics()
    app = probes.metrics_app(metrics.registry, lambda: metrics.scrapes.labels("timeout").set(7))
    runner, url = await probes.serve(app, "127.0.0.1", 0)
    try:
        _, text = await get(f"{url}/metrics")
    finally:
        await runner.cleanup()
    assert 'spotinference_operator_scrapes{result="timeout"} 7.0' in text


async def test_a_taken_port_is_named_with_a_remedy() -> None:
    app = probes.probe_app(SystemClock, lambda: None)  # type: ignore[arg-type]  # never asked
    runner, url = await probes.serve(app, "127.0.0.1", 0)
    try:
        with pytest.raises(errors.ConfigInvalid, match="Choose another port"):
            await probes.serve(
                probes.probe_app(lambda: None, lambda: None),
                "127.0.0.1",
                int(url.rpartition(":")[2]),
            )
    finally:
        await runner.cleanup()


def test_addresses_are_announced_as_one_line_of_json(tmp_path: Path) -> None:
    file = tmp_path / "addresses"
    probes.announce(file, {"probes": "http://127.0.0.1:1"})
    assert json.loads(file.read_text()) == {"probes": "http://127.0.0.1:1"}
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(errors.ConfigInvalid, match="folder that exists"):
        probes.announce(tmp_path / "absent" / "addresses", {})
