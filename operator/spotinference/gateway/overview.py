"""Health, readiness and metrics of several gateway processes on one port (`workers.py`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web
from prometheus_client import generate_latest

from spotinference.clients.engine_http import Broken, NoConnection, Silent
from spotinference.clients.engine_pool import Pool
from spotinference.core.exposition import merged
from spotinference.gateway import metrics
from spotinference.gateway.metrics import Metrics

ASK_S = 1.5
"""A worker answers its operational port within this; the probes of the pod allow two seconds."""
MAX_PAGE_BYTES = 16 * 1024 * 1024

Address = Callable[[], str | None]
"""Of one worker's operational port, as it is now; None while it is not listening."""


class Operational:
    """Health, readiness and metrics of all workers on one port."""

    def __init__(self, workers: list[Address], pool: Pool, metrics: Metrics) -> None:
        self._workers = workers
        self._pool = pool
        self._metrics = metrics
        self.stopping = False

    async def handle(self, http: web.BaseRequest) -> web.StreamResponse:
        path = http.raw_path.partition("?")[0] if http.method == "GET" else ""
        match path:
            case "/healthz":
                return await self._all("/healthz")
            case "/readyz":
                if self.stopping:
                    return web.Response(text="stopping\n", status=503)
                return await self._all("/readyz", starting=503)
            case "/metrics":
                return await self._pages()
            case _:
                return web.Response(status=404)

    async def ready(self) -> bool:
        answers = await self._ask("/readyz")
        return all(status == 200 for status, _ in answers.values())

    async def _all(self, path: str, *, starting: int = 200) -> web.Response:
        """200 when all workers say so. One that is being started again is alive, but not ready."""
        answers = await self._ask(path)
        bad = {index: said for index, said in answers.items() if said[0] != 200}
        lines = [f"worker {index}: {text.strip()}\n" for index, (_, text) in bad.items()]
        worst = max((starting if status == 0 else 503 for status, _ in bad.values()), default=200)
        return web.Response(text="".join(lines) or "ok\n", status=worst)

    async def _pages(self) -> web.Response:
        answers = await self._ask("/metrics")
        pages = {str(i): text for i, (status, text) in answers.items() if status == 200}
        own = self._metrics.registry.restricted_registry(
            ["spotinference_gateway_worker_restarts_total"]
        )
        body = generate_latest(own) + merged(pages).encode()
        return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _ask(self, path: str) -> dict[int, tuple[int, str]]:
        """Worker → status and text; 0: it is not listening, 504: it does not answer."""
        said = await asyncio.gather(*(self._one(worker, path) for worker in self._workers))
        return dict(enumerate(said))

    async def _one(self, worker: Address, path: str) -> tuple[int, str]:
        address = worker()
        if address is None:
            return 0, "starting"
        try:
            async with asyncio.timeout(ASK_S):
                answer = await self._pool.request(
                    "GET", address, path, connect_timeout_s=ASK_S, silence_s=ASK_S
                )
                try:
                    body = bytearray()
                    async for part in answer.parts():
                        body += part
                        if len(body) > MAX_PAGE_BYTES:
                            return 502, f"more than {MAX_PAGE_BYTES} bytes"
                    return answer.status, body.decode(errors="replace")
                finally:
                    answer.close()
        except (Silent, TimeoutError) as error:
            return 504, f"no answer: {type(error).__name__}"
        except (NoConnection, Broken):  # it has just died: its address is not forgotten yet
            return 0, "starting"
