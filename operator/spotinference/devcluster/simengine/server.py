"""Routes, start, drain and stop of the simulated engine.

`SimServer` runs one engine in the caller's loop (tests; `process.py` for pods). Stopping is vLLM's, traps included:

- SIGTERM with `--shutdown-timeout T`: running requests finish within T. Meanwhile /health stays
  200; a new request whose prompt must be tokenised gets 500 "cannot schedule new futures after
  shutdown"; one whose prompt is a list of tokens gets 200 and an empty answer that ends with
  finish_reason "abort" (not streamed) or with [DONE] alone (streamed).
- At the end of T, open streams get an error event and [DONE], others 500. (vLLM's race sometimes
  leaves them silent instead, as with T = 0.)
- With T = 0 the core is gone at once, the port refuses, and open streams fall silent without being
  closed: the process ends only when its clients have gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable

import orjson
from aiohttp import web

from spotinference import errors
from spotinference.devcluster.simengine import (
    metrics,
    pooling,
    protocol,
    responses,
    tokenizer,
    wire,
)
from spotinference.devcluster.simengine.engine import Aborted, Engine, Output, Request
from spotinference.devcluster.simengine.faults import Fault, Faults
from spotinference.devcluster.simengine.faults import parse as parse_fault
from spotinference.devcluster.simengine.options import SimOptions
from spotinference.devcluster.simengine.protocol import Generation
from spotinference.devcluster.simengine.streaming import HANG_S, Stream, reset

Asked = Callable[[web.Request, protocol.Json, Fault], Awaitable[web.StreamResponse]]
"""Answers a POST whose body was read."""

VERSION = "0.32.0"
"""The vLLM whose API this is."""
KEEP_ALIVE_S = 5.0
"""vLLM's (uvicorn's) own: a proxy that pools connections meets closed ones."""
MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_REQUEST_LOG = 2000
DRAIN_POLL_S = 0.02


class SimServer:
    """One engine behind one port.

    >>> server = SimServer(SimOptions(served_names=("m",), tokens_per_s=50))
    >>> await server.start()
    >>> server.url                      # http://127.0.0.1:41234
    >>> server.faults.plan = Fault(mode="rst", after_chunks=7)
    >>> await server.stop()
    """

    def __init__(self, options: SimOptions, *, plan: Fault | None = None) -> None:
        self.options = options
        self.engine = Engine(options)
        self.faults = Faults(plan)
        self.requests: deque[dict[str, object]] = deque(maxlen=MAX_REQUEST_LOG)
        """What was asked, newest last: {"path", "body", "headers"}."""
        self.port = options.port
        self.draining = False
        self.hanging = 0
        """streams that fell silent by a fault"""
        self._stopped_core = False
        self._sockets: set[asyncio.Transport] = set()
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._steps: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.options.host}:{self.port}"

    async def start(self) -> None:
        """Listens and serves."""
        self._runner = web.AppRunner(
            self._app(),
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=KEEP_ALIVE_S,
            shutdown_timeout=0.1,
        )
        await self._runner.setup()
        self._site = web.TCPSite(
            self._runner, self.options.host, self.options.port, reuse_address=True, backlog=1024
        )
        await self._site.start()
        addresses = self._runner.addresses
        self.port = int(addresses[0][1])
        self._steps = asyncio.create_task(self.engine.run(), name="engine-steps")

    async def stop(self) -> None:
        """At once; every connection is closed."""
        self._stopped_core = True
        if self._steps is not None:
            self._steps.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._steps
        if self._runner is not None:
            await self._runner.cleanup()

    async def kill(self) -> None:
        """As SIGKILL looks from outside: every connection reset, nobody listens."""
        if self._site is not None:
            await self._site.stop()
            self._site = None
        for transport in list(self._sockets):
            reset(transport)
        await self.stop()

    def _hangs(self) -> None:
        self.hanging += 1

    async def drain(self) -> None:
        """What SIGTERM does: returns when the process may end."""
        deadline = time.monotonic() + self.options.shutdown_timeout_s
        self.draining = self.options.shutdown_timeout_s > 0
        while self.draining and self.engine.unfinished and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_POLL_S)
        self._stopped_core = True
        if self._steps is not None:
            self._steps.cancel()
        if self.draining:
            self.engine.abort_all()
        if self._site is not None:
            await self._site.stop()
        while self._sockets:  # noqa: ASYNC110  (as vLLM: until the last client has gone)
            await asyncio.sleep(DRAIN_POLL_S)

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._errors])
        app.router.add_get("/health", self._health)
        app.router.add_get("/ping", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        for path, handler in self._asked().items():
            app.router.add_post(path, self._served(handler))
        app.router.add_post("/_sim/faults", self._set_faults)
        app.router.add_get("/_sim/requests", self._list_requests)
        return app

    @web.middleware
    async def _errors(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except protocol.Refused as refused:
            return web.Response(
                body=refused.body(), status=refused.status, content_type="application/json"
            )
        except web.HTTPException as error:
            return _json({"detail": error.reason}, error.status)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=self.faults.plan.health)

    async def _version(self, _: web.Request) -> web.Response:
        return _json({"version": VERSION})

    async def _models(self, _: web.Request) -> web.Response:
        now = int(time.time())
        cards: list[dict[str, object]] = [
            {
                "id": name,
                "object": "model",
                "created": now,
                "owned_by": "vllm",
                "root": self.options.model,
                "parent": None,
                "max_model_len": self.options.max_model_len,
                "permission": [],
            }
            for name in self.options.served_names
        ]
        return _json({"object": "list", "data": cards})

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        name = self.options.served_names[0]
        plan = self.faults.plan
        match plan.metrics:
            case "":
                text = metrics.render(self.engine, name)
            case "hang":
                await asyncio.sleep(HANG_S)
                text = ""
            case "status":
                return web.Response(status=plan.status, text="no")
            case "reset":
                reset(request.transport)
                text = ""
            case "huge":
                return await self._huge_metrics(request)
            case lie:
                text = metrics.lie(lie, name)
        return web.Response(body=text.encode(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _huge_metrics(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": metrics.CONTENT_TYPE})
        await response.prepare(request)
        line = b'vllm:other{engine="0"} 1.0\n' * 2500
        for _ in range(self.faults.plan.size // len(line) + 1):
            await response.write(line)
        return response

    def _asked(self) -> dict[str, Asked]:
        """What there is depends on the task: vLLM has no route for what its model cannot do."""
        common: dict[str, Asked] = {
            "/tokenize": self._plain(self._tokenize),
            "/detokenize": self._plain(self._detokenize),
        }
        if self.options.pooling:
            return common | {
                "/v1/embeddings": self._plain(pooling.embeddings),
                "/v1/score": self._plain(pooling.score),
                "/v1/rerank": self._plain(pooling.rerank),
            }
        return common | {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completions,
            "/v1/responses": self._responses,
        }

    def _served(self, handler: Asked) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """What every one of these has in common: counted, remembered, subject to faults."""

        async def serve(request: web.Request) -> web.StreamResponse:
            transport = request.transport
            if transport is not None:
                self._sockets.add(transport)
            try:
                return await self._asked_with_faults(request, handler)
            finally:
                if transport is not None:
                    self._sockets.discard(transport)

        return serve

    async def _asked_with_faults(self, request: web.Request, handler: Asked) -> web.StreamResponse:
        if request.content_type != "application/json":
            raise protocol.Refused(
                400,
                "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
                "Bad Request",
            )
        body = await self._json_body(request)
        headers = dict(request.headers)
        self.requests.append({"path": request.path, "body": body, "headers": headers})
        fault = self.faults.take()
        early = await self._fault_before_headers(request, fault)
        return await handler(request, body, fault) if early is None else early

    def _plain(self, answer: Callable[[protocol.Json, SimOptions], bytes]) -> Asked:
        """An answer that needs no batch."""

        async def handler(_: web.Request, body: protocol.Json, __: Fault) -> web.StreamResponse:
            return web.Response(body=answer(body, self.options), content_type="application/json")

        return handler

    @staticmethod
    def _tokenize(body: protocol.Json, options: SimOptions) -> bytes:
        protocol.model_of(body, options)
        prompt = body.get("prompt")
        if isinstance(prompt, str):
            ids = tokenizer.encode(prompt)
        else:
            ids = list(protocol.chat_prompt(body))
        strings = [tokenizer.decode([i]) for i in ids] if body.get("return_token_strs") else None
        return orjson.dumps(
            {
                "count": len(ids),
                "max_model_len": options.max_model_len,
                "tokens": ids,
                "token_strs": strings,
            }
        )

    @staticmethod
    def _detokenize(body: protocol.Json, options: SimOptions) -> bytes:
        protocol.model_of(body, options)
        if body.get("tokens") is None:
            raise protocol.invalid("body.tokens", "Field required", "missing")
        ids = [t for t in protocol.items(body["tokens"]) if isinstance(t, int)]
        return orjson.dumps({"prompt": tokenizer.decode(ids)})

    async def _set_faults(self, request: web.Request) -> web.Response:
        try:
            self.faults.plan = parse_fault(await self._json_body(request))
        except (errors.ConfigInvalid, TypeError) as error:
            return _json({"error": str(error)}, 400)
        if self.faults.plan.mode == "sigkill" and self.faults.plan.after_chunks == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return _json({"ok": True})

    async def _list_requests(self, _: web.Request) -> web.Response:
        return _json(list(self.requests))

    async def _json_body(self, request: web.Request) -> protocol.Json:
        return protocol.parse_json(await request.read())

    async def _chat(
        self, request: web.Request, body: protocol.Json, fault: Fault
    ) -> web.StreamResponse:
        return await self._generate(
            request, protocol.parse_generation(body, self.options, chat=True), fault
        )

    async def _completions(
        self, request: web.Request, body: protocol.Json, fault: Fault
    ) -> web.StreamResponse:
        return await self._generate(
            request, protocol.parse_generation(body, self.options, chat=False), fault
        )

    async def _responses(
        self, request: web.Request, body: protocol.Json, fault: Fault
    ) -> web.StreamResponse:
        generation = responses.parse(body, self.options)
        writer = responses.ResponsesWriter(generation, body)
        return await self._generate(request, generation, fault, writer)

    async def _generate(
        self,
        request: web.Request,
        generation: Generation,
        fault: Fault,
        writer: responses.ResponsesWriter | None = None,
    ) -> web.StreamResponse:
        if self.draining and generation.text_prompt:
            raise protocol.shutting_down()
        if self._stopped_core:
            await asyncio.sleep(HANG_S)
        work = self.engine.submit(generation)
        if self.draining:
            self.engine.refuse(work)
        try:
            if generation.stream:
                events = writer or wire.StreamWriter(generation)
                stream = Stream(self.kill, request, work, fault, events)
                stream.on_hang = self._hangs
                return await stream.run()
            outputs = await self._whole(work)
            body = writer.answer(outputs) if writer else wire.whole_answer(generation, outputs)
            return web.Response(body=body, content_type="application/json")
        except Aborted:
            raise protocol.core_died() from None
        finally:
            self.engine.cancel(work)

    @staticmethod
    async def _whole(work: Request) -> list[Output]:
        done = [Output(index, [], "") for index in range(len(work.sequences))]
        left = len(done)
        while left:
            for out in await work.outputs():
                whole = done[out.index]
                whole.token_ids += out.token_ids
                whole.text += out.text
                if out.finish_reason is not None:
                    whole.finish_reason, whole.stop_reason = out.finish_reason, out.stop_reason
                    left -= 1
        return done

    async def _fault_before_headers(
        self, request: web.Request, fault: Fault
    ) -> web.StreamResponse | None:
        match fault.mode:
            case "status":
                return web.Response(
                    status=fault.status, text=fault.body, content_type="application/json"
                )
            case "hang_headers":
                await asyncio.sleep(HANG_S)
            case "refuse":
                reset(request.transport)
                await asyncio.sleep(HANG_S)
            case "content_type":
                return web.Response(
                    text="<html><body>it works</body></html>", content_type="text/html"
                )
            case "redirect":
                return web.Response(status=302, headers={"Location": "http://169.254.169.254/"})
            case _:
                pass
        return None


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")
