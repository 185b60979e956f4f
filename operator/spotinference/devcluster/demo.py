"""The demo's story: asleep, woken, streaming, its node reclaimed, the answer finished, asleep again.

Every claim it prints is checked first; `run` returns whether all of them were seen.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from difflib import SequenceMatcher

import aiohttp

from spotinference import errors
from spotinference.api.kinds import Json
from spotinference.devcluster.client import Answer, ask
from spotinference.devcluster.handle import ClusterHandle
from spotinference.devcluster.narrator import Narrator, Wait

TIER = "storyteller"
PROMPT = "Tell me what happens when a spot machine disappears."
WAKE_DEADLINE_S = 420.0
SLEEP_DEADLINE_S = 120.0
RECLAIM_AT_SHARE = 0.35
"""The node goes when about this share of the answer has arrived: the middle, visibly."""

TOPOLOGY = """
pools:
  - name: spot-l4
    provider: gke
    price: 0.28
    bootDelay: 3s
    markets: [{zone: zone-a, capacity: 2}, {zone: zone-b, capacity: 2}]
  - name: spot-a100
    provider: karpenter
    gpu: {product: NVIDIA-A100-SXM4-40GB, memoryGib: 40}
    price: 1.15
    notice: 120s
    bootDelay: 3s
    markets: [{zone: zone-a, capacity: 2}, {zone: zone-b, capacity: 2}]
  - name: on-demand-l4
    provider: gke
    capacityType: on-demand
    price: 0.71
    bootDelay: 3s
    markets: [{zone: zone-a, capacity: 2}]
engine: {startDelay: 2s, tokensPerSecond: 40}
"""


def tier_manifest(*, max_model_len: int) -> str:
    """The tier of the demo, as a user would write it."""
    return f"""\
apiVersion: spotinference.dev/v1alpha1
kind: InferenceTier
metadata: {{name: {TIER}, namespace: default}}
spec:
  model: {{source: hf://spotinference/demo}}
  engine:
    maxModelLen: {max_model_len}
    maxNumSeqs: 8
    extraArgs: [--enforce-eager]     # on two cores compiling takes longer than it saves
  resources: {{cpu: "1", memory: 4Gi, sharedMemory: 64Mi}}
  placement: {{pools: [spot-l4, spot-a100, on-demand-l4]}}
  scaling: {{minReplicas: 0, maxReplicas: 1, idleTimeout: 10s}}
  interruption: {{drain: 5s}}
  cache: {{size: 2Gi, storageClassName: shared, accessMode: ReadWriteMany, retain: false}}
"""


@dataclass(frozen=True, slots=True)
class Script:
    """How long the answer is; the engine decides."""

    max_tokens: int
    max_model_len: int


class Story:
    def __init__(self, cluster: ClusterHandle, narrator: Narrator, script: Script) -> None:
        self._cluster = cluster
        self._say = narrator
        self._script = script

    async def run(self) -> bool:
        """True only if all was seen: woken, cut, continued, identical, asleep again."""
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            await self._create()
            cut, cut_at = await self._interrupted(session)
            undisturbed = await self._undisturbed(session)
            asleep = await self._sleep()
        return self._verdict(cut, cut_at, undisturbed) and asleep

    async def _create(self) -> None:
        self._say.chapter("A tier is applied, and sleeps")
        manifest = tier_manifest(max_model_len=self._script.max_model_len)
        self._say.block(manifest)
        await self._cluster.apply(manifest)
        with self._say.waiting("weights go to the cache volume; no GPU node is held") as wait:
            await self._cluster.tier_until(
                TIER,
                lambda t: _phase(t) == "Asleep" and _condition(t, "CacheReady") == "True",
                deadline_s=WAKE_DEADLINE_S,
                look=lambda t: wait.say(f"weights go to the cache volume: {_cache_message(t)}"),
            )
        self._say.block(await self._cluster.kubectl("get", "itier"))
        nodes = await self._cluster.gpu_nodes()
        self._say.done(f"asleep: 0 replicas, {len(nodes)} GPU nodes, Ready=True (Asleep)")

    async def _interrupted(self, session: aiohttp.ClientSession) -> tuple[Answer, int]:
        self._say.chapter("A request wakes it; its node is taken in the middle of the answer")
        self._say.note(f'[bold]You:[/bold] "{PROMPT}"')
        heard = _Heard(self._say)
        expected = self._script.max_tokens
        answering = asyncio.create_task(self._ask(session, heard))
        with self._say.waiting("parked; the tier wakes") as wait:
            woken = await self._first_token(answering, heard, wait)
        self._say.done(f"first token {woken:.1f} s after the request")
        self._say.block(await self._cluster.kubectl("get", "itier"))
        heard.show()
        middle = expected * RECLAIM_AT_SHARE
        while heard.tokens < middle and not answering.done():  # noqa: ASYNC110  # a stream fills it
            await asyncio.sleep(0.02)
        cut_at = len(heard.whole)
        if answering.done():
            self._say.failed("the answer ended before its node could be taken")
            return answering.result(), cut_at
        pod = (await self._cluster.engine_pods(TIER))[0]
        node = pod["spec"]["nodeName"]
        await self._cluster.reclaim(node)
        cut_at = len(heard.whole)
        heard.interrupt(f"node {node} is reclaimed without notice: its processes are gone")
        answer = await self._follow(answering, heard)
        self._say.close_text()
        replacement = await self._cluster.engine_pods(TIER)
        where = [p["spec"].get("nodeName", "?") for p in replacement]
        self._say.done(
            f"the stream went on after {answer.longest_stall_s:.1f} s, from the next token, on "
            f"{', '.join(where)}"
        )
        return answer, cut_at

    async def _ask(self, session: aiohttp.ClientSession, heard: _Heard | None) -> Answer:
        return await ask(
            session,
            self._cluster.gateway_url,
            self._cluster.api_key,
            TIER,
            prompt=PROMPT,
            max_tokens=self._script.max_tokens,
            on_text=heard.on_text if heard else None,
            ignore_eos=True,
        )

    async def _first_token(
        self, answering: asyncio.Task[Answer], heard: _Heard, wait: Wait
    ) -> float:
        def stage(tier: Json) -> None:
            wake = tier.get("status", {}).get("wake") or {}
            wait.say(f"parked; the tier wakes: {wake.get('stage', 'requested')}")

        began_at = time.monotonic()
        while not heard.tokens and not answering.done():
            stage(await self._cluster.tier(TIER))
            await asyncio.sleep(0.1)
            if time.monotonic() - began_at > WAKE_DEADLINE_S:
                answering.cancel()
                raise errors.ApiUnavailable(
                    f"no token within {WAKE_DEADLINE_S:.0f} s of the request"
                )
        if answering.done() and not heard.tokens:
            raise errors.ApiUnavailable(f"the request failed: {answering.result().error}")
        return time.monotonic() - began_at

    async def _follow(self, answering: asyncio.Task[Answer], heard: _Heard) -> Answer:
        """Waits for the end; while nothing flows, says that the stream is parked."""
        before = heard.tokens
        with self._say.waiting(
            "the stream is parked; a replacement starts in another market"
        ) as wait:
            while heard.tokens == before and not answering.done():
                tier = await self._cluster.tier(TIER)
                stage = (tier.get("status", {}).get("wake") or {}).get("stage", "")
                wait.say(f"the stream is parked; a replacement starts in another market: {stage}")
                await asyncio.sleep(0.1)
        heard.resume()
        return await asyncio.wait_for(answering, WAKE_DEADLINE_S)

    async def _undisturbed(self, session: aiohttp.ClientSession) -> Answer:
        self._say.chapter("The same question again, undisturbed")
        heard = _Heard(self._say)
        answering = asyncio.create_task(self._ask(session, heard))
        with self._say.waiting("the same request, nothing disturbs it") as wait:
            while not answering.done():
                if self._say.live:
                    wait.say(f"the same request, nothing disturbs it: {heard.tokens} tokens")
                await asyncio.sleep(0.2)
        return await answering

    def _verdict(self, cut: Answer, cut_at: int, undisturbed: Answer) -> bool:
        tokens = cut.usage[-1]["completion_tokens"] if cut.usage else 0
        problems = [
            problem
            for wrong, problem in (
                (not cut.complete, f"the interrupted answer is not whole: {cut.error}"),
                (not undisturbed.complete, f"the undisturbed answer failed: {undisturbed.error}"),
                (cut.roles != 1 or len(cut.ids) != 1, "the stream changed its id or role"),
                (len(cut.usage) != 1, "usage was not counted once"),
                (cut.text != undisturbed.text, _difference(cut.text, undisturbed.text)),
                (cut.usage != undisturbed.usage, f"usage differs: {cut.usage}"),
            )
            if wrong
        ]
        for problem in problems:
            self._say.failed(problem)
        if not problems:
            self._say.done(
                f"{len(cut.text)} characters, {tokens} tokens, cut after character {cut_at}: "
                "one id, one role, one finish, one usage, one \\[DONE]"
            )
        return not problems

    async def _sleep(self) -> bool:
        self._say.chapter("Nobody asks any more")
        with self._say.waiting("idle for 10 s, then to sleep"):
            await self._cluster.tier_until(
                TIER, lambda t: _phase(t) == "Asleep", deadline_s=SLEEP_DEADLINE_S
            )
            deadline = time.monotonic() + SLEEP_DEADLINE_S
            nodes = await self._cluster.gpu_nodes()
            while nodes and time.monotonic() < deadline:
                await asyncio.sleep(0.3)
                nodes = await self._cluster.gpu_nodes()
        self._say.block(await self._cluster.kubectl("get", "itier"))
        if nodes:
            self._say.failed(f"{len(nodes)} GPU nodes are still held")
        else:
            self._say.done("asleep again: 0 replicas, 0 GPU nodes")
        return not nodes


class _Heard:
    """Text as it arrives: kept, and shown when its moment has come."""

    def __init__(self, narrator: Narrator) -> None:
        self._say = narrator
        self._shown = False
        self._held = ""
        self._style = ""
        self.whole = ""
        self.tokens = 0

    def on_text(self, piece: str) -> None:
        self.whole += piece
        self.tokens += 1
        if self._shown:
            self._say.text(piece, self._style)
        else:
            self._held += piece

    def show(self) -> None:
        self._say.open_text()
        self._shown = True
        self._say.text(self._held, self._style)
        self._held = ""

    def interrupt(self, text: str) -> None:
        self._say.interjection(text)
        self._style = "green"
        self._shown = False

    def resume(self) -> None:
        self._say.interjection("the stream goes on")
        self._shown = True
        self._say.text(self._held, self._style)
        self._held = ""


def _phase(tier: Json) -> str:
    return str(tier.get("status", {}).get("phase", ""))


def _condition(tier: Json, kind: str, field: str = "status") -> str:
    for condition in tier.get("status", {}).get("conditions", []):
        if condition["type"] == kind:
            return str(condition[field])
    return ""


def _cache_message(tier: Json) -> str:
    return _condition(tier, "CacheReady", "reason") or "Pending"


def _difference(cut: str, whole: str) -> str:
    """Where two answers part, with a little of each."""
    size = SequenceMatcher(None, cut, whole, autojunk=False).find_longest_match().size
    at = next((i for i, (a, b) in enumerate(zip(cut, whole, strict=False)) if a != b), size)
    return (
        f"the answers differ at character {at}: "
        f"{cut[at : at + 40]!r} against {whole[at : at + 40]!r}"
    )
