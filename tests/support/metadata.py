"""Metadata services of the three clouds on a loopback port, as faithful as a client can tell.

Every server can also be made to fail: `fault` is a status to answer with, or "hang".
"""

from __future__ import annotations

import asyncio
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.test_utils import TestServer

from spotinference.api.kinds import Json


@dataclass
class Cloud(ABC):
    fault: int | str | None = None
    asked: list[str] = field(default_factory=list)

    @abstractmethod
    def routes(self) -> list[web.RouteDef]:
        """What this cloud answers."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        app = web.Application(middlewares=[self._faults])
        app.add_routes(self.routes())
        async with TestServer(app, host="127.0.0.1", shutdown_timeout=0.1) as server:
            yield str(server.make_url("")).rstrip("/")

    @web.middleware
    async def _faults(self, request: web.Request, handler: object) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path_qs}")
        if self.fault == "hang":
            await asyncio.sleep(30)
        if isinstance(self.fault, int):
            return web.Response(status=self.fault)
        return await handler(request)  # type: ignore[operator, no-any-return]  # aiohttp's Handler


@dataclass
class Ec2(Cloud):
    """IMDSv2 with tokens required: 401 without a good one, 404 before an announcement."""

    action: Json | str | None = None
    rebalance: Json | None = None
    tokens: set[str] = field(default_factory=set)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.put("/latest/api/token", self._token),
            web.get("/latest/meta-data/spot/instance-action", self._action),
            web.get("/latest/meta-data/events/recommendations/rebalance", self._rebalance),
        ]

    async def _token(self, request: web.Request) -> web.Response:
        if not 1 <= int(request.headers.get("X-aws-ec2-metadata-token-ttl-seconds", 0)) <= 21600:
            return web.Response(status=400)
        token = f"token-{next(self._numbers)}"
        self.tokens.add(token)
        return web.Response(text=token)

    async def _action(self, request: web.Request) -> web.Response:
        return self._document(request, self.action)

    async def _rebalance(self, request: web.Request) -> web.Response:
        return self._document(request, self.rebalance)

    def _document(self, request: web.Request, body: Json | str | None) -> web.Response:
        if request.headers.get("X-aws-ec2-metadata-token") not in self.tokens:
            return web.Response(status=401)
        if body is None:
            return web.Response(status=404)
        return web.Response(text=body if isinstance(body, str) else json.dumps(body))


@dataclass
class Gce(Cloud):
    """Values with ETags; `wait_for_change` is answered when the value changes or time is up."""

    maintenance: str = "NONE"
    maintenance_fault: int | None = None
    flavour: str | None = "Google"
    _preempted: str = "FALSE"
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def preempt(self) -> None:
        self._preempted = "TRUE"
        self._changed.set()
        self._changed = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/computeMetadata/v1/", self._root),
            web.get("/computeMetadata/v1/instance/preempted", self._preemption),
            web.get("/computeMetadata/v1/instance/maintenance-event", self._maintenance),
        ]

    async def _root(self, request: web.Request) -> web.Response:
        return self._answer(request, "instance/\nproject/")

    async def _preemption(self, request: web.Request) -> web.Response:
        query = request.query
        if query.get("wait_for_change") == "true" and query.get("last_etag") == self._etag:
            try:
                async with asyncio.timeout(float(query["timeout_sec"])):
                    await self._changed.wait()
            except TimeoutError:
                pass
        return self._answer(request, self._preempted)

    async def _maintenance(self, request: web.Request) -> web.Response:
        if self.maintenance_fault is not None:
            return web.Response(status=self.maintenance_fault)
        return self._answer(request, self.maintenance)

    @property
    def _etag(self) -> str:
        return "d00d" if self._preempted == "FALSE" else "f00d"

    def _answer(self, request: web.Request, text: str) -> web.Response:
        if request.headers.get("Metadata-Flavor") != "Google":
            return web.Response(status=403)
        headers = {"ETag": self._etag}
        if self.flavour:
            headers["Metadata-Flavor"] = self.flavour
        return web.Response(text=text, headers=headers)


@dataclass
class AzureVm(Cloud):
    """Scheduled Events: 400 without the header, one document for the whole scale set."""

    name: str = "aks-spot_3"
    events: list[Json] = field(default_factory=list)
    slow_s: float = 0

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/metadata/instance/compute/name", self._name),
            web.get("/metadata/scheduledevents", self._events),
        ]

    async def _name(self, request: web.Request) -> web.Response:
        if request.headers.get("Metadata") != "true" or "api-version" not in request.query:
            return web.Response(status=400)
        return web.Response(text=self.name)

    async def _events(self, request: web.Request) -> web.Response:
        if request.headers.get("Metadata") != "true" or "api-version" not in request.query:
            return web.Response(status=400)
        await asyncio.sleep(self.slow_s)
        return web.json_response({"DocumentIncarnation": 2, "Events": self.events})

    def announce(self, kind: str, *, of: str | None = None, not_before: str = "") -> None:
        self.events.append(
            {
                "EventId": "602d9444-d2cd-49c7-8624-8643e7171297",
                "EventType": kind,
                "ResourceType": "VirtualMachine",
                "Resources": [of or self.name.upper()],
                "EventStatus": "Scheduled",
                "NotBefore": not_before,
                "Description": "",
                "EventSource": "Platform",
                "DurationInSeconds": -1,
            }
        )
