"""/healthz, /readyz and /metrics over HTTP, on two ports: one for the kubelet, one for Prometheus.

Healthy means that the loop moves: a coroutine beats each second, and no tier has waited or been
worked on for longer than `STALL_S`. Ready means that the first lists are in and Kopf runs; a
replica that waits for leadership is ready.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from spotinference import errors
from spotinference.clients.clock import Clock

BEAT_S = 1.0
STALL_S = 120.0
"""Twice the deadline of one look at a tier."""


class Heartbeat:
    """Whether the event loop still turns, and when the queue is stuck."""

    def __init__(self, clock: Clock, stalled_s: Callable[[], float]) -> None:
        self._clock = clock
        self._stalled_s = stalled_s
        self._beat_at = clock.monotonic()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._beat_at = self._clock.monotonic()
            await asyncio.sleep(BEAT_S)

    def sickness(self) -> str | None:
        """What is wrong, None when nothing is."""
        silent_s = self._clock.monotonic() - self._beat_at
        if silent_s > STALL_S:
            return f"the event loop stood still for {silent_s:.0f} s"
        stalled_s = self._stalled_s()
        if stalled_s > STALL_S:
            return f"the work queue has not moved for {stalled_s:.0f} s"
        return None


def probe_app(
    sickness: Callable[[], str | None], unready: Callable[[], str | None]
) -> web.Application:
    def answer(why: Callable[[], str | None]) -> Callable[[web.Request], object]:
        async def handler(_: web.Request) -> web.Response:
            problem = why()
            return web.Response(text=f"{problem or 'ok'}\n", status=503 if problem else 200)

        return handler

    app = web.Application()
    app.router.add_get("/healthz", answer(sickness))  # type: ignore[arg-type]
    app.router.add_get("/readyz", answer(unready))  # type: ignore[arg-type]
    return app


def metrics_app(registry: CollectorRegistry, refresh: Callable[[], None]) -> web.Application:
    async def handler(_: web.Request) -> web.Response:
        refresh()
        return web.Response(
            body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app = web.Application()
    app.router.add_get("/metrics", handler)
    return app


async def serve(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, str]:
    """Starts a server; port 0 means any. Answers its address."""
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=30)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise errors.ConfigInvalid(
            f"cannot listen on {host}:{port}: {error.strerror or error}. Choose another port, "
            "or 0 for any free one."
        ) from error
    address = runner.addresses[0]
    bound = f"[{address[0]}]" if ":" in address[0] else address[0]
    return runner, f"http://{bound}:{address[1]}"


def announce(path: Path, addresses: dict[str, str]) -> None:
    """One JSON line, there as a whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(addresses) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise errors.ConfigInvalid(
            f"--announce {path}: {error.strerror or error}. Name a file in a folder that exists "
            "and may be written."
        ) from error
