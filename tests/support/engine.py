"""Engines as processes for tests: the simulated one always, the real vLLM on the CPU when marked.

A server is started in its own session and killed as a group: vLLM's core outlives its API server.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp

from spotinference.devcluster import demo_model, engine_env, engine_install
from spotinference.devcluster.simengine.model import write_tiny_repo

Kind = Literal["sim", "vllm"]
Json = dict[str, Any]

START_DEADLINE_S = 280.0
"""vLLM starts within half a minute on an idle machine, and in minutes beside a build."""
STOP_DEADLINE_S = 30.0
REQUEST_DEADLINE_S = 120.0
MODEL = "demo"
ALIAS = "demo-alias"
MAX_MODEL_LEN = 2048
SIM_TOKENS_PER_S = 200


@dataclass(slots=True)
class EngineServer:
    """A running engine."""

    kind: Kind
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait_ready(self) -> None:
        """Until it answers /health; fails with the end of its log."""
        until = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])
        raise AssertionError(
            f"{self.kind} engine did not start (exit code {self.process.poll()}):\n{tail}"
        )

    def terminate(self) -> None:
        """SIGTERM to the process that a container would have as its first."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """The whole group; harmless when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=STOP_DEADLINE_S)


@contextlib.contextmanager
def running_engine(
    kind: Kind, *flags: str, folder: Path | None = None, weights: Path | None = None
) -> Iterator[EngineServer]:
    """An engine that answers /health; killed at the end of the block. Later flags win."""
    with starting_engine(kind, *flags, folder=folder, weights=weights) as server:
        server.wait_ready()
        yield server


@contextlib.contextmanager
def starting_engine(
    kind: Kind, *flags: str, folder: Path | None = None, weights: Path | None = None
) -> Iterator[EngineServer]:
    """The same, not waited for."""
    with tempfile.TemporaryDirectory(prefix="engine-") as scratch:
        where = folder or Path(scratch)
        port = _free_port()
        argv, env = _command(kind, where, weights)
        log = where / f"{kind}-{port}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [
                    *argv,
                    *("--host", "127.0.0.1", "--port", str(port)),
                    *("--served-model-name", MODEL, ALIAS),
                    *("--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", "8"),
                    "--enforce-eager",
                    *flags,
                ],
                stdout=out,
                stderr=out,
                env=env,
                start_new_session=True,
            )
        server = EngineServer(kind, f"http://127.0.0.1:{port}", process, log)
        try:
            yield server
        finally:
            server.kill()


def _command(
    kind: Kind, folder: Path, weights: Path | None
) -> tuple[Sequence[str], dict[str, str]]:
    env = {**os.environ, "VLLM_CACHE_ROOT": str(folder / "vllm")}
    if kind == "sim":
        repo = folder / "model"
        write_tiny_repo(repo, weight_bytes=4096)
        env["SPOTINFERENCE_SIM_TOKENS_PER_S"] = str(SIM_TOKENS_PER_S)
        root = Path(engine_install.__file__).parents[2]
        env["PYTHONPATH"] = str(root)
        module = "spotinference.devcluster.simengine"
        return (sys.executable, "-m", module, "serve", str(repo)), env
    vllm = engine_install.install(_say)
    repo = weights or demo_model.ensure(engine_install.engine_python(vllm), _say)
    env.pop("PYTHONPATH", None)
    return (str(vllm), "serve", str(repo)), {**env, **engine_env.vllm_env()}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass(slots=True)
class Streamed:
    """One streamed answer, taken apart."""

    status: int
    chunks: list[Json] = field(default_factory=list)
    done: bool = False
    body: str = ""
    """Of an answer that is no stream."""

    @property
    def choices(self) -> list[Json]:
        return [choice for chunk in self.chunks for choice in chunk["choices"]]

    @property
    def text(self) -> str:
        return "".join(
            c["text"] if "text" in c else c["delta"].get("content") or "" for c in self.choices
        )

    @property
    def token_ids(self) -> list[int]:
        return [i for c in self.choices for i in c.get("token_ids") or ()]

    @property
    def prompt_token_ids(self) -> list[int]:
        first = self.chunks[0]
        ids = first.get("prompt_token_ids") or first["choices"][0].get("prompt_token_ids")
        assert ids, f"no prompt_token_ids on the first chunk: {first}"
        return list(ids)

    @property
    def finish_reasons(self) -> list[str]:
        return [c["finish_reason"] for c in self.choices if c.get("finish_reason")]


class EngineClient:
    """Raw requests to one engine."""

    def __init__(self, server: EngineServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.kind = server.kind
        self._session = session

    async def get(self, path: str) -> tuple[int, str]:
        async with self._session.get(self.server.url + path) as response:
            return response.status, await response.text()

    async def post(self, path: str, body: object) -> tuple[int, Json]:
        async with self._session.post(self.server.url + path, json=body) as response:
            return response.status, json.loads(await response.text())

    async def ask(self, **body: object) -> Json:
        """An answer in one piece; chat when `messages` is given."""
        status, answer = await self.post(_path(body), {"model": MODEL, **body})
        assert status == 200, answer
        return answer

    async def stream(self, **body: object) -> Streamed:
        result = Streamed(0)
        async with self.open(**body) as response:
            result.status = response.status
            if response.status != 200:
                result.body = await response.text()
                return result
            async for event in events(response):
                if event == "[DONE]":
                    result.done = True
                else:
                    result.chunks.append(json.loads(event))
        return result

    def open(
        self, **body: object
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        body = {"model": MODEL, "stream": True, **body}
        return self.open_at(_path(body), body)

    def open_at(
        self, path: str, body: Json
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._session.post(self.server.url + path, json=body)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a series; fails when the series is missing."""
        _, text = await self.get("/metrics")
        found = [
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.startswith((f"{name}{{", f"{name} "))
            and all(f'{k}="{v}"' in line for k, v in labels.items())
        ]
        assert found, f"/metrics has no {name}"
        return sum(found)


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """The data of each server-sent event."""
    async for raw in response.content:
        line = raw.decode().rstrip("\r\n")
        if line.startswith("data: "):
            yield line.removeprefix("data: ")
        else:
            assert not line, f"unexpected line in a stream: {line!r}"


def _path(body: Json) -> str:
    return "/v1/chat/completions" if "messages" in body else "/v1/completions"
