"""A gateway in this process, an API server in memory, simulated engines on loopback.

    async with bench() as b:
        await b.tier("demo")
        engine = await b.replica("demo")
        async with b.openai() as client: ...

The reflector is the real one; only the API server below it is ours.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from openai import AsyncOpenAI

from spotinference.api import names
from spotinference.api.keys import ApiKey, KeyFile, digest
from spotinference.api.kinds import POD, TIER, Json
from spotinference.core.observed import TierRef
from spotinference.devcluster.simengine.options import SimOptions
from spotinference.devcluster.simengine.server import SimServer
from spotinference.gateway.app import Running, running
from spotinference.gateway.config import GatewaySettings
from tests.support.eventually import eventually
from tests.support.fake_kube import NAMESPACE, FakeKube

KEY = "sk-spot-test"
OTHER_KEY = "sk-spot-of-another-team"
OTHER_NAMESPACE = "other"

FAST = {
    "host": "127.0.0.1",
    "port": 0,
    "metrics_port": 0,
    "id": "gw-test",
    "eject_s": 0.1,
    "keys_poll_s": 0.05,
    "drain_s": 2.0,
}
"""Settings of a gateway under test: own ports, short pauses."""


@dataclass(slots=True)
class Engine:
    """One simulated engine and its pod."""

    pod: str
    sim: SimServer


@dataclass(slots=True)
class Bench:
    kube: FakeKube
    settings: GatewaySettings
    gateway: Running
    keys_file: Path
    engines: dict[str, Engine]
    tokens_per_s: float = 0.0
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def url(self) -> str:
        return self.gateway.http

    async def tier(
        self, name: str, namespace: str = NAMESPACE, *, status: Json | None = None, **spec: Any
    ) -> None:
        """Makes or changes a tier; the gateway knows it on return."""
        body: Json = {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": f"uid-{name}",
                "creationTimestamp": "2026-11-01T00:00:00Z",
            },
            "spec": {
                "model": {"source": "hf://org/demo"},
                "placement": {"pools": ["spot"]},
                **spec,
            },
            "status": status or {"phase": "Asleep"},
        }
        self.kube.put(TIER, body)
        ref = TierRef(namespace, name)
        wanted = body["spec"].get("paused", False)
        catalogue = self.gateway.context.catalogue

        def known() -> bool:
            tier = catalogue.get(ref)
            return tier is not None and tier.spec.paused == wanted

        await eventually(known, 5)

    async def start_engine(self, **options: Any) -> SimServer:
        given: dict[str, Any] = {
            "served_names": ("demo",), "host": "127.0.0.1", "tokens_per_s": self.tokens_per_s,
            "max_model_len": 4096,
        } | options  # fmt: skip
        sim = SimServer(replace(SimOptions(), **given))
        await sim.start()
        return sim

    def pod(
        self,
        name: str,
        tier: str,
        port: int,
        *,
        ready: bool = True,
        annotations: Mapping[str, str] | None = None,
        model: str = "/cache/weights/abc",
        deleting: bool = False,
    ) -> Json:
        meta: Json = {
            "name": name,
            "namespace": NAMESPACE,
            "uid": f"uid-{name}",
            "labels": names.tier_labels(tier, names.ROLE_ENGINE),
            "annotations": dict(annotations or {}),
        }
        if deleting:
            meta["deletionTimestamp"] = "2026-11-01T00:00:00Z"
        return {
            "metadata": meta,
            "spec": {
                "containers": [
                    {
                        "name": names.ENGINE_CONTAINER,
                        "image": "vllm/vllm-openai:v0.32.0",
                        "args": [model],
                        "ports": [{"name": names.ENGINE_PORT_NAME, "containerPort": port}],
                    }
                ]
            },
            "status": {
                "phase": "Running",
                "podIP": "127.0.0.1",
                "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            },
        }

    async def replica(
        self, tier: str = "demo", *, name: str | None = None, model: str = "/cache/weights/abc",
        **options: Any,
    ) -> Engine:  # fmt: skip
        """Starts an engine and makes its pod Ready; the gateway routes to it on return."""
        sim = await self.start_engine(**options)
        name = name or f"{tier}-{next(self._numbers)}"
        self.kube.put(POD, self.pod(name, tier, sim.port, model=model))
        engine = Engine(name, sim)
        self.engines[name] = engine
        await eventually(lambda: name in self.routable(tier), 5, "replica routable")
        return engine

    def routable(self, tier: str = "demo") -> list[str]:
        ref = TierRef(NAMESPACE, tier)
        return [r.name for r in self.gateway.context.replicas.of(ref) if r.routable]

    async def lose_node(self, engine: Engine) -> None:
        """The machine is gone: connections reset, then the pod object disappears."""
        await engine.sim.kill()
        if (POD.kind, NAMESPACE, engine.pod) in self.kube.objects:
            self.kube.drop(POD, engine.pod)

    @contextlib.contextmanager
    def preferring(self, engine: Engine | str) -> Iterator[None]:
        """The next requests go to this replica (or the one of this pod) while it is routable."""
        pod = engine if isinstance(engine, str) else engine.pod
        others = [
            replica
            for tier in self.gateway.context.catalogue.of(NAMESPACE)
            for replica in self.gateway.context.replicas.of(tier.ref)
            if replica.name != pod
        ]
        for replica in others:
            replica.outstanding += 10**9
        try:
            yield
        finally:
            for replica in others:
                replica.outstanding -= 10**9

    def parked(self, tier: str = "demo") -> int:
        return self.gateway.context.parking.parked(TierRef(NAMESPACE, tier))

    @asynccontextmanager
    async def openai(self, key: str = KEY, **options: Any) -> AsyncIterator[AsyncOpenAI]:
        async with AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, **options) as client:
            yield client

    @asynccontextmanager
    async def http(self, key: str | None = KEY) -> AsyncIterator[aiohttp.ClientSession]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            self.url, headers=headers, connector=connector, timeout=aiohttp.ClientTimeout(60)
        ) as session:
            yield session


def keys_text(*keys: tuple[str, str]) -> str:
    return KeyFile(
        keys=[
            ApiKey(id=f"key-{index}", sha256=digest(secret), namespace=namespace)
            for index, (secret, namespace) in enumerate(keys)
        ]
    ).model_dump_json()


@asynccontextmanager
async def bench(*, tokens_per_s: float = 0.0, **settings: Any) -> AsyncIterator[Bench]:
    """A gateway that has seen its (empty) cluster, with two keys."""
    kube = FakeKube()
    with TemporaryDirectory(prefix="spot-gw-") as folder:
        keys_file = Path(folder) / "keys.json"
        keys_file.write_text(keys_text((KEY, NAMESPACE), (OTHER_KEY, OTHER_NAMESPACE)))
        chosen = GatewaySettings(**{**FAST, "keys_file": keys_file, **settings})
        engines: dict[str, Engine] = {}
        try:
            async with running(chosen, kube) as gateway:
                await eventually(lambda: gateway.server._ready() is None, 5, "all was listed")
                yield Bench(kube, chosen, gateway, keys_file, engines, tokens_per_s)
        finally:
            for engine in engines.values():
                with contextlib.suppress(Exception):
                    await engine.sim.stop()


# --- streams as a client sees them ---------------------------------------------------------------


@dataclass(slots=True)
class Seen:
    """A stream as it came over the wire."""

    status: int
    headers: Mapping[str, str]
    raw: bytes
    clean: bool
    """the HTTP body ended well"""

    @property
    def events(self) -> list[bytes]:
        blocks = self.raw.split(b"\n\n")
        return [block.removeprefix(b"data: ") for block in blocks if block.startswith(b"data: ")]

    @property
    def comments(self) -> list[bytes]:
        return [block for block in self.raw.split(b"\n\n") if block.startswith(b":")]

    @property
    def done(self) -> int:
        return self.events.count(b"[DONE]")

    @property
    def chunks(self) -> list[Json]:
        return [json.loads(event) for event in self.events if event != b"[DONE]"]

    @property
    def error(self) -> Json | None:
        errors_seen = [chunk["error"] for chunk in self.chunks if "error" in chunk]
        return errors_seen[0] if errors_seen else None

    @property
    def text(self) -> str:
        out = ""
        for chunk in self.chunks:
            for choice in chunk.get("choices", ()):
                out += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        return out

    @property
    def texts(self) -> dict[int, str]:
        """Per choice."""
        out: dict[int, str] = {}
        for chunk in self.chunks:
            for choice in chunk.get("choices", ()):
                more = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                out[choice["index"]] = out.get(choice["index"], "") + more
        return out

    @property
    def finishes(self) -> list[str]:
        return [
            choice["finish_reason"]
            for chunk in self.chunks
            for choice in chunk.get("choices", ())
            if choice.get("finish_reason")
        ]

    @property
    def roles(self) -> int:
        return sum(
            "role" in (choice.get("delta") or {})
            for chunk in self.chunks
            for choice in chunk.get("choices", ())
        )

    @property
    def usages(self) -> list[Json]:
        return [chunk["usage"] for chunk in self.chunks if chunk.get("usage")]

    @property
    def identities(self) -> set[tuple[str, int, str, str]]:
        return {
            (chunk["id"], chunk["created"], chunk["model"], chunk["object"])
            for chunk in self.chunks
            if "id" in chunk
        }


async def stream(
    session: aiohttp.ClientSession, path: str, body: Json, *, arrived: list[bytes] | None = None
) -> Seen:
    """The whole stream, also when it is cut; `arrived` fills up meanwhile."""
    raw: list[bytes] = arrived if arrived is not None else []
    async with session.post(path, json=body) as response:
        clean = True
        try:
            async for data in response.content.iter_any():
                raw.append(data)  # noqa: PERF401 - what came before a cut counts
        except aiohttp.ClientError:
            clean = False
        return Seen(response.status, dict(response.headers), b"".join(raw), clean)


def chat(prompt: str = "tell me a story", **more: Any) -> Json:
    body: Json = {
        "model": "demo",
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "temperature": 0,
        "max_tokens": 60,
    }
    return body | more


def completion(prompt: str | list[str] = "once upon a time", **more: Any) -> Json:
    body: Json = {
        "model": "demo",
        "prompt": prompt,
        "stream": True,
        "temperature": 0,
        "max_tokens": 60,
    }
    return body | more


CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
