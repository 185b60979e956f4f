"""HTTP: exact paths, keys, errors; everything that happens before a request may touch a backend."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from functools import partial

import orjson
import structlog
from aiohttp import web

from spotinference import logs
from spotinference.api.keys import ApiKey
from spotinference.api.kinds import Json
from spotinference.core import continuation, responses, routing
from spotinference.core.chunks import Endpoint
from spotinference.core.continuation import Prepared
from spotinference.gateway import (
    errors,
    exchange,
    limits,
    listener,
    metrics,
    models,
    replay,
    requests,
)
from spotinference.gateway.catalogue import Tier
from spotinference.gateway.context import Context
from spotinference.gateway.errors import Code, GatewayError
from spotinference.gateway.exchange import Exchange
from spotinference.gateway.ids import Ids
from spotinference.gateway.keys import KeyRing
from spotinference.gateway.listener import Handler
from spotinference.gateway.messages import Request
from spotinference.gateway.replay import Asked, RecordedReply, Recording
from spotinference.gateway.reply import Reply, at_once, cut
from spotinference.gateway.response_stream import ResponseStream
from spotinference.gateway.streamed import Gathered, Streamed
from spotinference.gateway.whole import Whole

log = structlog.get_logger(__name__)

SEED_BITS = 31
SESSION_HEADER = "x-session-id"
"""A client's own name for what belongs together: goes to one replica while that has room."""


class Server:
    """The OpenAI-compatible front, and the operational port beside it."""

    def __init__(self, context: Context, keys: KeyRing, ready: Callable[[], str | None]) -> None:
        """`ready` gives the reason why not, or None."""
        self._context = context
        self._keys = keys
        self._ready = ready
        self.stopping = False
        self._ids = Ids()
        self._running: set[asyncio.Task[object]] = set()
        context.metrics.in_flight.set_function(lambda: len(self._running))
        self._background: set[asyncio.Task[None]] = set()
        """requests that run apart from their client's connection"""
        self._routes: dict[tuple[str, str], Handler] = {
            **{("POST", endpoint.value): partial(self._engine, endpoint) for endpoint in Endpoint},
            ("GET", "/v1/models"): self._models,
            ("GET", "/healthz"): self._healthz,
            ("GET", "/readyz"): self._readyz,
        }
        self._answering = {self._routes["POST", endpoint.value] for endpoint in Endpoint}
        """handlers whose requests count as answers"""
        self._operational: dict[str, Handler] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
        }

    # --- entry points ---------------------------------------------------------------------------

    async def handle(self, http: Request) -> web.StreamResponse:
        """Every request of the client port."""
        task = http.task
        self._running.add(task)
        request_id = self._ids()
        http.request_id = request_id
        try:
            response = await self._handler(http)(http)
        except GatewayError as error:
            return self._refused(http, error)
        except ConnectionError:
            raise  # the client is gone; aiohttp closes what is left
        except asyncio.CancelledError as cancelled:
            if cancelled.args == (exchange.STOPPING,):  # our own doing, at the end of the drain
                return self._refused(http, errors.stopping())
            raise
        except Exception as error:  # noqa: BLE001 - the outermost frame of a request
            self._context.metrics.bugs.inc()
            log.error("request.bug", id=request_id, bug=logs.where(error))  # noqa: TRY400
            return self._refused(http, GatewayError(Code.INTERNAL_ERROR, "Internal error."))
        else:
            if not response.prepared:
                response.headers["x-request-id"] = request_id
            return response
        finally:
            self._running.discard(task)
            del task  # else a cancelled one is a cycle: its exception's frames would hold it

    def is_full(self) -> bool:
        """As many answers are given as may be: one more request is refused."""
        answering = len(self._running) - self._context.parking.count
        return answering >= self._context.settings.max_answers

    def refuse(self, http: Request) -> bool:
        """`gateway_busy`, before the request has a task; False: the usual way has to answer."""
        if self.stopping:
            return False
        try:
            if self._handler(http) not in self._answering:
                return False
            self._authenticated(http)
        except GatewayError:
            return False
        http.request_id = self._ids()
        error = errors.gateway_busy()
        if at_once(http, error.status, self._headers_of(http, error), error.body()) is None:
            return False
        self._count_refused(http, error)
        return True

    async def handle_operational(self, http: Request) -> web.StreamResponse:
        """Health and metrics, on a port of their own."""
        handler = self._operational.get(_path(http)) if http.method == "GET" else None
        return await handler(http) if handler is not None else web.Response(status=404)

    async def drain(self, timeout_s: float) -> None:
        """Waits for running answers; those that are left get an error event and an abort."""
        self.stopping = True
        if running := [*self._running, *self._background]:
            _, late = await asyncio.wait(running, timeout=timeout_s)
            for task in late:
                task.cancel(exchange.STOPPING)
            if late:
                log.warning("drain.cut", answers=len(late))
                await asyncio.wait(late, timeout=3)

    def _handler(self, http: Request) -> Handler:
        listener.check(http)
        path = _path(http)
        handler = self._routes.get((http.method, path))
        if handler is None and http.method == "GET" and path.startswith(models.PREFIX):
            handler = self._model
        if handler is None:
            raise GatewayError(Code.NOT_FOUND, "No such path and method.")
        return handler

    def refused_by_parser(self, error: GatewayError) -> None:
        """Counts what never became a request."""
        self._context.metrics.requests.labels(metrics.OTHER, error.code.wire).inc()

    def _count_refused(self, http: Request, error: GatewayError) -> None:
        self._context.metrics.requests.labels(http.tier_name, error.code.wire).inc()

    def _headers_of(self, http: Request, error: GatewayError) -> dict[str, str]:
        return {
            **error.headers(),
            "x-request-id": http.request_id,
            **self._limit_headers(http),
        }

    def _refused(self, http: Request, error: GatewayError) -> web.StreamResponse:
        self._count_refused(http, error)
        if http.begun:
            cut(http)
            raise ConnectionResetError("a second answer would be read as that to the next request")
        headers = self._headers_of(http, error)
        if error.status in {429, 503} and not self.stopping:  # refusals come in crowds: cheaply
            sent = at_once(http, error.status, headers, error.body())
            if sent is not None:
                return sent
        response = web.Response(body=error.body(), status=error.status, headers=headers)
        if error.status in {408, 413} or error.code is Code.MALFORMED_HTTP or self.stopping:
            response.force_close()
        return response

    # --- what engines answer --------------------------------------------------------------------

    async def _engine(self, endpoint: Endpoint, http: Request) -> web.StreamResponse:
        key = self._authenticated(http)
        if self.stopping:
            raise errors.stopping()
        answering = len(self._running) - self._context.parking.count
        if answering > self._context.settings.max_answers:  # before its body costs anything
            raise errors.gateway_busy()
        await self._context.turns.own()
        wanted = replay.asked(http)
        reading = requests.read_body(http, self._context.settings)
        if wanted is not None:
            return await self._recorded(http, key, endpoint, await reading, wanted)
        raw = await reading
        body, size = requests.parse(endpoint, raw), len(raw)
        del raw  # it may be parked for minutes: one copy of the prompt is enough
        return await self._answer(http, key, endpoint, body, size)

    async def _recorded(
        self, http: Request, key: ApiKey, endpoint: Endpoint, raw: bytes, wanted: Asked
    ) -> web.StreamResponse:
        """The request runs on its own; this connection, and those that join, play what it gives."""
        settings, replays = self._context.settings, self._context.replays
        digest = hashlib.sha256(endpoint.value.encode() + b"\n" + raw).digest()
        recording, forward = replays.find(key.id, wanted, digest), self._context.forward
        if recording is None and (peer := forward.peer_for(http, key.id, wanted)) is not None:
            if (answer := await forward.ask(http, peer, raw)) is not None:
                return answer
            recording = replays.find(key.id, wanted, digest)  # begun by another meanwhile
        if recording is None:
            if wanted.last is not None:
                raise replay.gone()
            if wanted.ids:
                http.request_id = forward.own_id(http.request_id)
            recording = Recording(key.id, http.request_id, digest, settings.max_recording_bytes)
            run = self._in_the_background(http, key, endpoint, raw, recording)
            del raw
            self._keep(replays.record(recording, wanted, run))
            connection = Reply(http, settings, recording.request_id)
        else:
            http.answer_headers = self._limit_headers(http)
            connection = Reply(http, settings, recording.request_id)
            connection.headers[replay.JOINED] = "true"
        try:
            return await replay.play(recording, connection, wanted)
        except asyncio.CancelledError as cancelled:
            if cancelled.args != (exchange.STOPPING,) or not connection.begun:
                raise
            return await connection.abort(errors.stopping())
        finally:
            replays.left(recording)

    async def _in_the_background(
        self,
        http: Request,
        key: ApiKey,
        endpoint: Endpoint,
        raw: bytes,
        recording: Recording,
    ) -> None:
        reply = RecordedReply(http, self._context.settings, recording)
        try:
            body, size = requests.parse(endpoint, raw), len(raw)
            del raw  # as above
            await self._answer(http, key, endpoint, body, size, reply)
        except GatewayError:
            raise  # the players tell it to their clients
        except Exception as error:  # the outermost frame of a request
            self._context.metrics.bugs.inc()
            bug = logs.where(error)
            log.error("request.bug", id=recording.request_id, bug=bug)  # noqa: TRY400
            raise GatewayError(Code.INTERNAL_ERROR, "Internal error.") from error

    def _keep(self, task: asyncio.Task[None]) -> None:
        """A drain waits for it, like for a client's own."""
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _answer(
        self,
        http: Request,
        key: ApiKey,
        endpoint: Endpoint,
        body: Json,
        size: int,
        reply: Reply | None = None,
    ) -> web.StreamResponse:
        """`size` of the body as it came, in bytes."""
        tier = self._tier(key, body["model"])
        http.tier_name = tier.ref.name
        work = routing.work_of(body, http.headers.get(SESSION_HEADER))
        kind, prepared = _prepared(endpoint, body, tier, self._context.settings.gather_tokens)
        needed = limits.estimate(
            work, size, completes=endpoint.completes, window=tier.context_window
        )
        grant = self._context.limits.admit(key, needed)
        http.answer_headers = self._limit_headers(http)
        run = kind(
            self._context,
            http,
            tier,
            prepared,
            work,
            key=key,
            body_bytes=size,
            reply=reply,
        )
        code = "client_gone"
        try:
            response = await run.run()
            code = "aborted" if run.aborted else "ok"
        except GatewayError as error:
            code = error.code.wire
            raise
        finally:
            grant.settle((run.account.prompt_tokens or 0) + (run.account.completion_tokens or 0))
            run.trace.ended(code, delivered=run.account.completion_tokens or 0)
            self._context.usage.over(http.request_id, endpoint, key, tier, run.trace, run.account)
        self._context.metrics.requests.labels(tier.ref.name, code).inc()
        return response

    def _limit_headers(self, http: Request) -> dict[str, str]:
        return self._context.limits.headers(http.key) if http.key is not None else {}

    def _authenticated(self, http: Request) -> ApiKey:
        key = self._keys.authenticate(
            http.headers.getall("Authorization", []), self._context.clock.now
        )
        http.key = key
        return key

    def _tier(self, key: ApiKey, model: str) -> Tier:
        """The tier that is to answer."""
        tier = self._found(key, model)
        if tier.spec.paused:
            raise errors.tier_paused(tier.names[0])
        return tier

    def _found(self, key: ApiKey, model: str) -> Tier:
        reason = self._ready()
        if reason is not None and not self.stopping:
            raise GatewayError(Code.GATEWAY_STARTING, f"Not ready: {reason}.", retry_after_s=1)
        catalogue = self._context.catalogue
        tier = catalogue.find(key.namespace, model)
        if tier is not None and tier.opened_by(key):
            return tier
        invalid = catalogue.invalid(key.namespace, model) if tier is None else None
        if invalid is not None and invalid.opened_by(key):
            raise errors.tier_invalid(model, invalid.problem)
        raise GatewayError(
            Code.MODEL_NOT_FOUND,
            f"The model {model!r} does not exist. GET /v1/models lists yours.",
            param="model",
        )

    # --- the rest -------------------------------------------------------------------------------

    async def _models(self, http: Request) -> web.StreamResponse:
        key = self._authenticated(http)
        return _json(models.listed(self._context, key), self._limit_headers(http))

    async def _model(self, http: Request) -> web.StreamResponse:
        key = self._authenticated(http)
        name = models.name_in(_path(http))
        shown = models.shown(self._context, self._found(key, name), name)
        return _json(shown, self._limit_headers(http))

    async def _healthz(self, _: Request) -> web.StreamResponse:
        return web.Response(text="ok\n")

    async def _readyz(self, _: Request) -> web.StreamResponse:
        reason = "stopping" if self.stopping else self._ready()
        return web.Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

    async def _metrics(self, _: Request) -> web.StreamResponse:
        return web.Response(
            body=self._context.metrics.render(), headers={"Content-Type": metrics.CONTENT_TYPE}
        )


def _prepared(
    endpoint: Endpoint, body: Json, tier: Tier, gather_tokens: int
) -> tuple[type[Exchange], Prepared]:
    """How the request is answered, and as what it goes to the engine."""
    seed = random.getrandbits(SEED_BITS)
    enabled = tier.spec.interruption.continuation == "auto"
    if endpoint.chunked:
        prepared = continuation.prepare(
            endpoint,
            body,
            seed=seed,
            enabled=enabled,
            parsed=tier.reasoning,
            gather_tokens=gather_tokens,
        )
        if prepared.stream:
            return Streamed, prepared
        return Gathered if prepared.gathered else Whole, prepared
    if endpoint is Endpoint.RESPONSES:
        prepared = responses.prepare(body, seed=seed, enabled=enabled)
        return ResponseStream if prepared.stream else Whole, prepared
    return Whole, continuation.whole(endpoint, body)


def _path(http: Request) -> str:
    """The path as it came, undecoded: only exact matches are served."""
    return http.raw_path.partition("?")[0]


def _json(value: object, headers: dict[str, str]) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json", headers=headers)
