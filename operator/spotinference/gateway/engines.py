"""Talks to engine pods: opens an answer, tells apart the ways in which that fails, probes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import orjson
import structlog

from spotinference.api.kinds import Json
from spotinference.clients.engine_http import Answer, Broken, NoConnection, Pool, head
from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.metrics import Metrics
from spotinference.gateway.replicas import Replica, Replicas

log = structlog.get_logger(__name__)

ENGINE_KEEPALIVE_S = 4.0
"""Below uvicorn's 5 s: a connection that the engine is about to close is not used again."""
END_TIMEOUT_S = 0.05
MAX_ERROR_BYTES = 64 * 1024
MAX_MODELS_BYTES = 1024 * 1024
_SHUTDOWN = b"cannot schedule new futures after shutdown"

Spawn = Callable[[Coroutine[None, None, None]], object]


class Unreachable(Exception):
    """No connection: nothing was sent, another replica may be asked."""


class Busy(Exception):
    """The engine's queue is full."""


class Draining(Exception):
    """The engine is shutting down and takes nothing new (vLLM says so with a 500)."""


class Lost(Exception):
    """The connection broke, fell silent or ended before the answer did."""


class Failed(Exception):
    """The engine answered with a server error, or not in its protocol."""


class Refused(Exception):
    """The engine finds the request wrong (4xx): the client's answer."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status}")
        self.status = status
        self.body = body


class Engines:
    def __init__(
        self,
        pool: Pool,
        replicas: Replicas,
        settings: GatewaySettings,
        metrics: Metrics,
        spawn: Spawn,
    ) -> None:
        self._pool = pool
        self._replicas = replicas
        self._settings = settings
        self._metrics = metrics
        self._spawn = spawn
        self._closed = asyncio.Event()

    def close(self) -> None:
        """Ends the probing of ejected replicas."""
        self._closed.set()

    def answer(
        self, replica: Replica, path: str, body: bytes, *, request_id: str, stream: bool
    ) -> _Opened:
        """A context: the engine's 200, its body unread; while it is open the replica counts it.

        When the replica leaves the cluster, reading fails at once.
        """
        return _Opened(self, replica, path, body, request_id, stream=stream)

    async def post(self, replica: Replica, path: str, body: bytes, request_id: str) -> Answer:
        """Any answer, its head read; how that fails is one of this module's exceptions."""
        settings = self._settings
        try:
            answer = self._pool.idle(replica.base_url)
            if answer is None:
                async with _until_gone(replica):
                    answer = await self._pool.connection(
                        replica.base_url, settings.connect_timeout_s
                    )
        except NoConnection as error:
            raise Unreachable(f"{replica.name}: {error}") from error
        except TimeoutError as error:
            raise Lost(f"{replica.name}: it left the cluster") from error
        headers = f"Content-Type: application/json\r\nX-Request-Id: {request_id}\r\n"
        request = head("POST", replica.base_url, path, headers, len(body)) + body
        replica.on_gone.add(answer.drop)
        try:
            await answer.send(request, settings.first_byte_timeout_s)
        except Broken as error:
            raise Lost(f"{replica.name}: {error}") from error
        finally:
            if not answer.status:
                replica.on_gone.discard(answer.drop)
                answer.drop()
        return answer

    async def check(self, response: Answer, *, stream: bool) -> None:
        status = response.status
        if status == 200:
            expected = "text/event-stream" if stream else "application/json"
            if response.content_type != expected:
                raise Failed(f"a 200 of type {response.content_type!r}, not {expected!r}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise Failed("a compressed answer that was not asked for")
            return
        try:
            body = await _bounded(response, MAX_ERROR_BYTES)
        except Broken as error:
            raise Lost(f"{error}") from error
        if status in {408, 429, 503}:
            raise Busy(f"status {status}")
        if status == 500 and _SHUTDOWN in body:
            raise Draining
        if (400 <= status < 500 or status == 501) and status not in {401, 403, 407}:
            raise Refused(status, body)  # 501: vLLM for an API that its model does not have
        raise Failed(f"status {status}")

    async def max_model_len(self, replica: Replica) -> int:
        """The context window that the engine reports; `Lost` or `Failed` when it does not."""
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s * 2):
                _, body = await self._get(replica, "/v1/models")
                return int(orjson.loads(body)["data"][0]["max_model_len"])
        except (Broken, NoConnection, TimeoutError) as error:
            raise Lost(f"{replica.name}: /v1/models: {error}") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise Failed(f"{replica.name}: /v1/models without max_model_len") from error

    async def _get(self, replica: Replica, path: str) -> tuple[int, bytes]:
        """Status and body, which is cut at `MAX_MODELS_BYTES`."""
        timeout_s = self._settings.connect_timeout_s
        answer = await self._pool.request(
            "GET", replica.base_url, path, connect_timeout_s=timeout_s, silence_s=timeout_s
        )
        try:
            return answer.status, await _bounded(answer, MAX_MODELS_BYTES)
        finally:
            answer.close()

    def eject(self, replica: Replica, *, pause_s: float | None = None) -> None:
        """Takes a replica that cannot be reached out of routing and probes it back."""
        if not self._replicas.eject(replica):
            return
        self._metrics.ejections.inc()
        settings = self._settings
        pause = settings.eject_s * 2 ** (replica.failures - 1) if pause_s is None else pause_s
        pause = min(pause, settings.eject_max_s)
        log.warning("replica.ejected", tier=str(replica.tier), pod=replica.name, for_s=pause)
        self._spawn(self._probe_back(replica, pause))

    async def _probe_back(self, replica: Replica, pause_s: float) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._closed.wait()
            if self._closed.is_set():
                return
            if not replica.ejected or replica not in self._replicas.of(replica.tier):
                return
            if await self._healthy(replica):
                replica.failures = 0
                self._replicas.readmit(replica)
                return
            pause_s = min(pause_s * 2, self._settings.eject_max_s)

    async def _healthy(self, replica: Replica) -> bool:
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                status, _ = await self._get(replica, "/health")
                return status == 200
        except (Broken, NoConnection, TimeoutError):
            return False


class _Opened:
    """The context that `Engines.answer` gives; a class, because it is entered for each request."""

    __slots__ = ("_answer", "_engines", "_given", "_replica", "_stream")

    def __init__(
        self,
        engines: Engines,
        replica: Replica,
        path: str,
        body: bytes,
        request_id: str,
        *,
        stream: bool,
    ) -> None:
        self._engines = engines
        self._replica = replica
        self._given = (path, body, request_id)
        self._stream = stream
        self._answer: Answer | None = None

    async def __aenter__(self) -> Answer:
        self._replica.outstanding += 1
        try:
            answer = self._answer = await self._engines.post(self._replica, *self._given)
            await self._engines.check(answer, stream=self._stream)
        except BaseException:
            self._close()
            raise
        return answer

    async def __aexit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        """An answer that was not read to its end is aborted, so that the engine stops."""
        self._replica.outstanding -= 1
        if self._answer is not None:
            self._replica.on_gone.discard(self._answer.drop)
            self._answer.close()


@asynccontextmanager
async def _until_gone(replica: Replica) -> AsyncIterator[None]:
    """TimeoutError in the block once the replica leaves the cluster: a dead node sends no reset."""
    now = asyncio.get_running_loop().time
    async with asyncio.timeout(None) as scope:

        def drop() -> None:
            scope.reschedule(now())

        replica.on_gone.add(drop)
        try:
            yield
        finally:
            replica.on_gone.discard(drop)


async def to_the_end(answer: Answer) -> None:
    """After [DONE] only the end of the body is missing: with it the connection can be kept."""
    if answer.ended:
        return
    with contextlib.suppress(TimeoutError, Broken):
        async with asyncio.timeout(END_TIMEOUT_S):
            while await answer.part():
                pass


async def _bounded(answer: Answer, limit: int) -> bytes:
    """The body, cut at `limit`."""
    body = bytearray()
    while len(body) < limit and (part := await answer.part()):
        body += part
    return bytes(body[:limit])


def error_message(body: bytes) -> tuple[str, str | None]:
    """Message and param of an engine's own error, whatever its shape."""
    try:
        decoded: Json = orjson.loads(body)
        error = decoded.get("error", decoded)
        if isinstance(error, dict):
            param = error.get("param")
            return str(error.get("message") or error)[:2000], str(param) if param else None
        return str(error)[:2000], None
    except (ValueError, AttributeError):
        return "The engine refused the request.", None
