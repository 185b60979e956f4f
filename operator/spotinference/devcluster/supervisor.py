"""Keeps the processes of an embedded cluster running, and answers `spotinference dev …`.

`Keeper` restarts one process with backoff and says so in the log. `ControlApi` is HTTP on the
cluster's own loopback block; each request carries the token of cluster.json, because every user
of the machine can reach a loopback address.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import structlog
from aiohttp import web

from spotinference import errors
from spotinference.devcluster import network
from spotinference.devcluster.processes import ManagedProcess, log_excerpt

log = structlog.get_logger(__name__)

BACKOFF_FIRST_S, BACKOFF_LAST_S = 0.2, 10.0
BACKOFF_RESET_S = 30.0
"""A process that ran this long starts its backoff anew."""
START_ATTEMPTS = 3
"""Ends of a starting process before the start counts as failed; one may be bad luck."""
HEALTH_POLL_S = 0.1
HEALTH_TIMEOUT_S = 2.0
CONTROL_TIMEOUT_S = 30.0


class Keeper:
    """Runs one process until told otherwise: `held` keeps it down, otherwise it comes back."""

    def __init__(
        self, process: ManagedProcess, *, health_url: str | None = None, grace_s: float = 10.0
    ) -> None:
        self.process = process
        self.health_url = health_url
        self.restarts = 0
        self._grace_s = grace_s
        self._wanted = asyncio.Event()
        if process.alive:  # started by somebody else, kept by us
            self._wanted.set()
        self._starting = asyncio.Lock()
        self._stopped = False

    @property
    def name(self) -> str:
        return self.process.name

    async def start(self) -> None:
        self._wanted.set()
        await self._start_if_down()

    async def run(self) -> None:
        """Restarts the process whenever it ends. Runs until cancelled or `stop`."""
        delay_s = BACKOFF_FIRST_S
        while not self._stopped:
            await self._wanted.wait()
            await self._start_if_down()
            began_at = time.monotonic()
            code = await self.process.wait()
            if not self._wanted.is_set() or self._stopped:
                continue
            self.restarts += 1
            if time.monotonic() - began_at > BACKOFF_RESET_S:
                delay_s = BACKOFF_FIRST_S
            log.warning(
                "process.ended",
                process=self.name,
                code=code,
                restart_in_s=delay_s,
                why=log_excerpt(self.process.log),
            )
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, BACKOFF_LAST_S)

    async def hold(self) -> None:
        """Stops it gracefully and keeps it down until `start`."""
        self._wanted.clear()
        await self.process.stop(self._grace_s)

    async def kill(self, *, stay_down: bool) -> None:
        """SIGKILL; comes back with backoff unless it has to stay down."""
        if stay_down:
            self._wanted.clear()
        await self.process.kill()

    async def restart(self) -> None:
        await self.hold()
        self.restarts += 1
        await self.start()

    async def _start_if_down(self) -> None:
        """Two callers, a command and the loop, must not start it twice."""
        async with self._starting:
            if self._wanted.is_set() and not self.process.alive:
                await self.process.start()

    async def stop(self) -> None:
        self._stopped = True
        await self.hold()

    async def healthy(self) -> bool:
        """Whether it answers 200 on its health URL; without one, whether it lives."""
        if not self.process.alive:
            return False
        if self.health_url is None:
            return True
        timeout = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(self.health_url) as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def wait_healthy(self, deadline_s: float) -> None:
        """`ApiUnavailable` with the log's last lines when it is not healthy in time."""
        until = time.monotonic() + deadline_s
        while not await self.healthy():
            if not self.process.alive and self.restarts >= START_ATTEMPTS:
                raise errors.ApiUnavailable(self.process.failure("ends whenever it is started"))
            if time.monotonic() > until:
                what = f"does not answer 200 on {self.health_url} after {deadline_s:.0f} s"
                raise errors.ApiUnavailable(self.process.failure(what))
            await asyncio.sleep(HEALTH_POLL_S)


Action = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""A command of the control API: its JSON body in, its JSON answer out."""


class ControlApi:
    """`POST /<action>` with a bearer token; an error of ours is 400 and its sentence."""

    def __init__(self, address: str, token: str, actions: dict[str, Action]) -> None:
        self.url = f"http://{address}:{network.free_port(address)}"
        self._token = token
        self._actions = actions
        app = web.Application()
        app.router.add_post("/{action}", self._handle)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> None:
        await self._runner.setup()
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        await web.TCPSite(self._runner, host, int(port)).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(sent.encode(), self._token.encode()):
            return web.json_response({"error": "wrong token"}, status=401)
        action = self._actions.get(request.match_info["action"])
        if action is None:
            return web.json_response({"error": "no such action"}, status=404)
        try:
            return web.json_response(await action(await request.json()))
        except (errors.SpotinferenceError, KeyError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=400)


async def control(url: str, token: str, action: str, **body: Any) -> dict[str, Any]:
    """Asks a running supervisor; `ConfigInvalid` is its refusal, `ApiUnavailable` its silence."""
    timeout = aiohttp.ClientTimeout(total=CONTROL_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {token}"}
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.post(f"{url}/{action}", json=body) as response,
        ):
            answer: dict[str, Any] = await response.json()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise errors.ApiUnavailable(
            f"the cluster's supervisor does not answer at {url}: {error}; "
            "see `spotinference dev status`"
        ) from error
    if response.status != 200:
        raise errors.ConfigInvalid(str(answer.get("error")))
    return answer
