"""Routes, start, drain and stop of the simulated engine.

`SimServer` runs one engine in the caller's loop (tests); `main` is the process that stands in for
`vllm serve`. Stopping is vLLM's, traps included:

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
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import orjson
from aiohttp import web

from spotinference import errors
from spotinference.devcluster.simengine import metrics, model, protocol, tokenizer, wire
from spotinference.devcluster.simengine import options as options_module
from spotinference.devcluster.simengine.engine import Aborted, Engine, Output, Request
from spotinference.devcluster.simengine.faults import Fault, Faults
from spotinference.devcluster.simengine.faults import parse as parse_fault
from spotinference.devcluster.simengine.options import ENV_PREFIX, SimOptions

VERSION = "0.32.0"
"""The vLLM whose API this is."""
KEEP_ALIVE_S = 5.0
"""vLLM's (uvicorn's) own: a proxy that pools connections meets closed ones."""
MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_REQUEST_LOG = 2000
HANG_S = 3600.0
DRAIN_POLL_S = 0.02

_SSE = "text/event-stream; charset=utf-8"
_LINGER_RST = struct.pack("ii", 1, 0)


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
            _reset(transport)
        await self.stop()

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
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/detokenize", self._detokenize)
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
                _reset(request.transport)
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

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await self._json_body(request)
        protocol.model_of(body, self.options)
        prompt = body.get("prompt")
        if isinstance(prompt, str):
            ids = tokenizer.encode(prompt)
        else:
            generation = protocol.parse_generation(body, self.options, chat=True)
            ids = list(generation.prompts[0])
        return _json(
            {
                "count": len(ids),
                "max_model_len": self.options.max_model_len,
                "tokens": ids,
                "token_strs": None,
            }
        )

    async def _detokenize(self, request: web.Request) -> web.Response:
        body = await self._json_body(request)
        tokens = body.get("tokens")
        ids = [t for t in tokens if isinstance(t, int)] if isinstance(tokens, list) else []
        return _json({"prompt": tokenizer.decode(ids)})

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

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=False)

    async def _generate(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        transport = request.transport
        if transport is not None:
            self._sockets.add(transport)
        try:
            return await self._answer(request, chat=chat)
        finally:
            if transport is not None:
                self._sockets.discard(transport)

    async def _answer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
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
        if early is not None:
            return early
        generation = protocol.parse_generation(body, self.options, chat=chat)
        if self.draining and generation.text_prompt:
            raise protocol.shutting_down()
        if self._stopped_core:
            await asyncio.sleep(HANG_S)
        work = self.engine.submit(generation)
        if self.draining:
            self.engine.refuse(work)
        try:
            if generation.stream:
                return await _Stream(self, request, work, fault).run()
            return await self._whole(work)
        except Aborted:
            raise protocol.core_died() from None
        finally:
            self.engine.cancel(work)

    async def _whole(self, work: Request) -> web.Response:
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
        return web.Response(
            body=wire.whole_answer(work.generation, done), content_type="application/json"
        )

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
                _reset(request.transport)
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


class _Stream:
    """One streamed answer, and what goes wrong in it."""

    def __init__(
        self, server: SimServer, request: web.Request, work: Request, fault: Fault
    ) -> None:
        self._server = server
        self._request = request
        self._work = work
        self._fault = fault
        self._chunks = 0
        self._response = web.StreamResponse(headers={"Content-Type": _SSE})

    async def run(self) -> web.StreamResponse:
        response, work, fault = self._response, self._work, self._fault
        writer = wire.StreamWriter(work.generation)
        left = len(work.sequences)
        faulty = fault.mode not in {"none", "status"}
        opened = False
        while left:
            try:
                outputs = await work.outputs()
            except Aborted:
                if not opened:
                    raise
                return await self._error_event()
            if not opened:
                # Headers only with the first token: until then an error can still be a status.
                await response.prepare(self._request)
                for chunk in writer.opening():
                    await self._write(chunk)
                opened = True
            for out in outputs:
                if out.finish_reason == "abort":
                    left -= 1
                    continue  # vLLM sends no chunk for what has neither text nor tokens
                chunk = writer.chunk(out)
                if faulty and 0 <= fault.after_chunks <= self._chunks:
                    return await self._break(chunk)
                await self._write(chunk)
                self._chunks += 1
                if out.finish_reason is not None:
                    left -= 1
        if faulty and fault.after_chunks < 0:
            return await self._break(b"")  # after everything but [DONE]
        for chunk in writer.closing():
            await self._write(chunk)
        await self._write(wire.DONE)
        await response.write_eof()
        return response

    async def _write(self, chunk: bytes) -> None:
        size = self._fault.slice_bytes
        if not size:
            await self._response.write(chunk)
            return
        for start in range(0, len(chunk), size):
            await self._response.write(chunk[start : start + size])
            await asyncio.sleep(0)

    async def _break(self, chunk: bytes) -> web.StreamResponse:
        """The fault, instead of `chunk` and all that would follow."""
        response, transport = self._response, self._request.transport
        match self._fault.mode:
            case "rst":
                await _flushed(transport)
                _reset(transport)
            case "fin":
                await _flushed(transport)
                _close(transport)
            case "fin_mid_line":
                await response.write(chunk[: len(chunk) // 2])
                await _flushed(transport)
                _close(transport)
            case "clean_no_done":
                await response.write_eof()
                return response
            case "done_no_finish":
                await response.write(wire.DONE)
                await response.write_eof()
                return response
            case "error_event":
                return await self._error_event()
            case "garbage":
                await response.write(b'data: {"id": broken\n\nnot an event at all\n\n')
                await response.write_eof()
                return response
            case "huge_line":
                block = b"x" * 65536
                await response.write(b'data: {"x":"')
                for _ in range(self._fault.size // len(block) + 1):
                    await response.write(block)
            case "bad_utf8":
                await response.write(b'data: {"choices":[{"text":"\xff\xfe\xc3"}]}\n\n')
            case "sigkill":
                await _flushed(transport)
                os.kill(os.getpid(), signal.SIGKILL)
            case "rst_all":
                await _flushed(transport)
                await self._server.kill()
            case _:
                pass
        await asyncio.sleep(HANG_S)
        return response

    async def _error_event(self) -> web.StreamResponse:
        """How vLLM ends a stream when its core dies: an error, and [DONE] all the same."""
        error = protocol.core_died()
        await self._response.write(b"data: " + error.body() + b"\n\n" + wire.DONE)
        await self._response.write_eof()
        return self._response


async def _flushed(transport: asyncio.Transport | None) -> None:
    """Gives the kernel what was written: a reset must not take back chunks already sent."""
    for _ in range(50):
        if transport is None or transport.is_closing() or not transport.get_write_buffer_size():
            break
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.005)


def _close(transport: asyncio.Transport | None) -> None:
    if transport is not None:
        transport.close()


def _reset(transport: asyncio.BaseTransport | None) -> None:
    """RST instead of FIN."""
    if not isinstance(transport, asyncio.Transport):
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RST)
    transport.abort()


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def main(argv: Sequence[str]) -> int:
    """The process: exit 1 with a sentence when vLLM would not start either."""
    try:
        options = options_module.parse(argv, os.environ)
        plan = os.environ.get(ENV_PREFIX + "FAULTS")
        fault = parse_fault(protocol.parse_json(plan.encode())) if plan else None
        config = model.check(Path(options.model))
        options = _with_model_len(options, config)
        return asyncio.run(_serve(options, config, fault))
    except (errors.SpotinferenceError, protocol.Refused) as error:
        _log(f"ERROR {error}")
        return 1
    except KeyboardInterrupt:
        return 130


def _with_model_len(options: SimOptions, config: dict[str, object]) -> SimOptions:
    from dataclasses import replace

    limit = config.get("max_position_embeddings")
    if options.max_model_len <= 0:
        fallback = options_module.DEFAULT_MAX_MODEL_LEN
        return replace(options, max_model_len=limit if isinstance(limit, int) else fallback)
    if isinstance(limit, int) and options.max_model_len > limit:
        raise errors.ConfigInvalid(
            f"User-specified max_model_len ({options.max_model_len}) is greater than the derived "
            f"max_model_len (max_position_embeddings={limit})"
        )
    return options


async def _serve(options: SimOptions, config: dict[str, object], fault: Fault | None) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _log(f"vLLM API server version {VERSION} (simulated), model {options.model}")
    if _must_fail(options):
        return 1
    hit, compile_s = model.compile_kernels(options, config)
    if not options.enforce_eager and options.cache_root is not None:
        _log(f"compile cache {'hit' if hit else 'miss'}: {options.cache_root}")
    if await _waited(stop, options.start_delay_s + compile_s):
        return 0
    if not hit:
        model.finish_compile(options, config)
        _log(f"torch.compile took {compile_s:.1f} s in total")
    server = SimServer(options, plan=fault)
    await server.start()
    _log(f"Application startup complete. {server.url}")
    await stop.wait()
    _log(f"[shutdown] timeout={options.shutdown_timeout_s:g}s")
    await server.drain()
    await server.stop()
    return 0


def _must_fail(options: SimOptions) -> bool:
    if not options.start_failure:
        return False
    if options.start_failures_left is not None and not options.start_failures_left.exists():
        return False
    if options.start_failure == "oom":
        _log("ERROR torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.95 GiB.")
    else:
        _log("ERROR RuntimeError: Engine core initialization failed.")
    return True


async def _waited(stop: asyncio.Event, seconds: float) -> bool:
    """True when asked to stop before the time was over."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    return stop.is_set()


def _log(line: str) -> None:
    stamp = time.strftime("%m-%d %H:%M:%S")
    print(f"(APIServer pid={os.getpid()}) {stamp} {line}", file=sys.stderr, flush=True)
