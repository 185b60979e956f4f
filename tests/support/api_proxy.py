"""A proxy in front of the API server that a test can make fail: refuse, answer, cut or freeze.

    async with api_proxy(cluster) as api:
        with operator(cluster, kubeconfig=api.kubeconfig) as it: ...
        api.fault = lambda request: Refusal(503) if request.method == "GET" else None

Plain HTTP on loopback; the client's bearer token is passed on, so rights are those of the client.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from spotinference.api.kinds import Json
from tests.support.cluster import LiveCluster

HOP = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive", "host"})


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that came to the proxy."""

    method: str
    path: str
    query: dict[str, str]
    status: int

    @property
    def watch(self) -> bool:
        return self.query.get("watch") in {"true", "1"}

    @property
    def lists(self) -> bool:
        return self.method == "GET" and not self.watch


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of the proxy's own, as the API server words it."""

    status: int
    reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> web.Response:
        body = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": f"injected {self.status}",
            "reason": self.reason,
            "code": self.status,
        }
        return web.json_response(body, status=self.status, headers=self.headers)


@dataclass(eq=False)
class _Watch:
    request: web.Request
    frozen: bool = False
    last_words: asyncio.Future[Json] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


@dataclass
class ApiProxy:
    kubeconfig: Path
    server: str
    trust: ssl.SSLContext
    fault: Callable[[web.Request], Refusal | None] = lambda _: None
    cut_off: bool = False
    """every connection is aborted, as by a network that is gone"""
    seen: list[Seen] = field(default_factory=list)
    _watches: list[_Watch] = field(default_factory=list)
    _session: aiohttp.ClientSession | None = None

    # --- what a test does -----------------------------------------------------------------------

    def drop_watches(self) -> None:
        """The connections of all watches are cut."""
        for watch in list(self._watches):
            if watch.request.transport is not None:
                watch.request.transport.abort()

    def freeze_watches(self) -> int:
        """The watches open now stay open and say nothing any more; how many they are."""
        for watch in self._watches:
            watch.frozen = True
        return len(self._watches)

    def end_watches_with(self, event: Json) -> int:
        """Each watch says this and ends; how many they were."""
        for watch in self._watches:
            watch.last_words.set_result(event)
        return len(self._watches)

    def since(self, mark: int) -> list[Seen]:
        return self.seen[mark:]

    # --- the proxy itself -----------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.cut_off:
            assert request.transport is not None
            request.transport.abort()
            raise ConnectionResetError
        refusal = self.fault(request)
        if refusal is not None:
            self._note(request, refusal.status)
            return refusal.response()
        assert self._session is not None
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP}
        async with self._session.request(
            request.method,
            self.server + request.path_qs,
            headers=headers,
            data=await request.read() or None,
            ssl=self.trust,
        ) as upstream:
            self._note(request, upstream.status)
            kept = {k: v for k, v in upstream.headers.items() if k.lower() not in HOP}
            if request.query.get("watch") not in {"true", "1"}:
                return web.Response(
                    status=upstream.status, body=await upstream.read(), headers=kept
                )
            answer = web.StreamResponse(status=upstream.status, headers=kept)
            try:
                with contextlib.suppress(ConnectionResetError):  # the client has gone
                    await answer.prepare(request)
                    await self._pass_on(request, upstream, answer)
            finally:
                # TLS says goodbye when it is closed: the loop may be gone before the answer comes.
                if upstream.connection is not None and upstream.connection.transport is not None:
                    upstream.connection.transport.abort()
            return answer

    async def _pass_on(
        self, request: web.Request, upstream: aiohttp.ClientResponse, answer: web.StreamResponse
    ) -> None:
        watch = _Watch(request)
        self._watches.append(watch)
        reading: asyncio.Future[bytes] | None = None
        try:
            while True:
                reading = asyncio.ensure_future(upstream.content.readany())
                both: set[asyncio.Future[Any]] = {reading, watch.last_words}
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if watch.last_words.done():
                    await answer.write(json.dumps(watch.last_words.result()).encode() + b"\n")
                    return
                if not (data := reading.result()):
                    return
                if not watch.frozen:
                    await answer.write(data)
        finally:
            if reading is not None:
                reading.cancel()
            self._watches.remove(watch)

    def _note(self, request: web.Request, status: int) -> None:
        self.seen.append(Seen(request.method, request.path, dict(request.query), status))


@contextlib.asynccontextmanager
async def api_proxy(cluster: LiveCluster, folder: Path) -> AsyncIterator[ApiProxy]:
    """A proxy before the cluster's API server; `kubeconfig` has the operator's own identity."""
    config = yaml.safe_load(cluster.paths.operator_kubeconfig.read_text())
    server = config["clusters"][0]["cluster"]
    trust = ssl.create_default_context(
        cadata=base64.b64decode(server["certificate-authority-data"]).decode()
    )
    proxy = ApiProxy(folder / "kubeconfig", server["server"], trust)
    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]  # asyncio.Server
    config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{port}"}
    proxy.kubeconfig.write_text(yaml.safe_dump(config))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
    ) as proxy._session:
        try:
            yield proxy
        finally:
            await runner.cleanup()
