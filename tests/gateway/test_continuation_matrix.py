"""Every kind of request, cut at every point by every kind of loss, is heard as if undisturbed.

One test per kind of request and of loss; the cuts are its cells. docs/reference/continuation.md
shows the matrix.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import pytest

from spotinference.api.kinds import POD, Json
from spotinference.devcluster.simengine.faults import Fault, Mode
from tests.support.continuation import KINDS, Kind, heard
from tests.support.evacuation import evacuated, notice
from tests.support.eventually import eventually
from tests.support.gateway import Bench, Engine, Seen, bench, stream

CUTS = {
    "before the first token": 0,
    "after the first token": 1,
    "in the middle": 11,
    "before the last token": -2,
    "before [DONE]": -1,
}
"""Chunks with tokens before the cut; -2 stands for one less than there are."""
IN_PLACE: dict[str, Mode] = {
    "reset": "rst",
    "closed": "fin",
    "closed within a chunk": "fin_mid_line",
    "ends without [DONE]": "clean_no_done",
    "[DONE] without a finish": "done_no_finish",
    "error event": "error_event",
}
"""Losses after which the same engine could serve again."""
LOSSES = (*IN_PLACE, "engine killed", "pod gone while its connection looks alive", "notice")


@dataclass(slots=True)
class Field:
    """A kind's bench: engines, the request, and what is heard undisturbed."""

    bench: Bench
    kind: Kind
    http: aiohttp.ClientSession
    body: Json = field(default_factory=dict)
    whole: Seen | None = None

    async def prepare(self) -> None:
        for _ in range(2):
            await self.replica()
        path = self.kind.endpoint.value
        self.body = self.kind.body()
        self.whole = await stream(self.http, path, self.body)
        if self.kind.stop:
            text = heard(self.whole.chunks)[0].text
            middle = len(text) // 2
            self.body = self.kind.body(text[middle : middle + 9])
            self.whole = await stream(self.http, path, self.body)
            assert "stop" in heard(self.whole.chunks)[0].finishes

    async def replica(self) -> Engine:
        limited = {"max_tokens", "max_completion_tokens"} & self.kind.body().keys()
        context = 4096 if limited else 120
        return await self.bench.replica(
            tool_parser=True, reasoning_parser=self.kind.reasoning, max_model_len=context
        )

    @property
    def chunks(self) -> int:
        """Chunks with tokens of the undisturbed stream."""
        assert self.whole is not None
        chosen = [c for chunk in self.whole.chunks for c in chunk["choices"]]
        return sum("role" not in (choice.get("delta") or {}) for choice in chosen)

    def after(self, cut: int) -> int:
        return self.chunks - 1 if cut == -2 else cut

    async def ask(self, first: Engine, arrived: list[bytes] | None = None) -> Seen:
        with self.bench.preferring(first):
            return await stream(self.http, self.kind.endpoint.value, self.body, arrived=arrived)

    def check(self, seen: Seen, where: str) -> None:
        assert self.whole is not None
        assert seen.error is None, f"{where}: {seen.error}"
        mine, theirs = heard(seen.chunks), heard(self.whole.chunks)
        assert mine.keys() == theirs.keys(), where
        for index, choice in theirs.items():
            assert mine[index].same_as(choice), f"{where}:\n{mine[index]}\n{choice}"
        assert seen.clean, where
        assert (seen.done, seen.events[-1]) == (1, b"[DONE]"), where
        assert len(seen.identities) == 1, where
        assert seen.usages[-1:] == self.whole.usages[-1:], where
        assert (b'token_ids":[' in seen.raw) is bool(self.body.get("return_token_ids")), where
        assert seen.headers["x-spotinference-continuation"] == self.kind.expected.value


Cells = Callable[[Field], Awaitable[None]]


async def over(kind: Kind, cells: Cells) -> None:
    async with bench(evacuation_tick_s=0.01) as b:
        await b.tier("demo", engine={"reasoningParser": "qwen3"} if kind.reasoning else {})
        async with b.http() as http:
            here = Field(b, kind, http)
            await here.prepare()
            await cells(here)


kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@pytest.mark.fault(37)
@kinds
async def test_a_lost_connection_at_any_point_is_not_heard(kind: Kind) -> None:
    async def cells(here: Field) -> None:
        first = next(iter(here.bench.engines.values()))
        for loss, mode in IN_PLACE.items():
            for cut, after in CUTS.items():
                if cut == "before [DONE]" and loss not in {"reset", "closed"}:
                    continue  # nothing is left that could end in another way
                first.sim.faults.plan = Fault(mode=mode, after_chunks=here.after(after), times=1)
                here.check(await here.ask(first), f"{loss} {cut}")

    await over(kind, cells)


@pytest.mark.fault(37)
@kinds
async def test_a_killed_engine_or_a_vanished_pod_is_not_heard(kind: Kind) -> None:
    async def cells(here: Field) -> None:
        for cut, after in CUTS.items():
            killed = await here.replica()
            killed.sim.faults.plan = Fault(mode="rst_all", after_chunks=here.after(after), times=1)
            here.check(await here.ask(killed), f"killed {cut}")
            here.bench.kube.drop(POD, killed.pod)
            silent = await here.replica()
            silent.sim.faults.plan = Fault(
                mode="hang_stream", after_chunks=here.after(after), times=1
            )
            asked = asyncio.create_task(here.ask(silent))
            await eventually(lambda engine=silent: engine.sim.hanging, 5)  # type: ignore[misc]
            here.bench.kube.drop(POD, silent.pod)
            here.check(await asked, f"pod gone {cut}")

    await over(kind, cells)


@pytest.mark.fault(36)
@kinds
async def test_a_notice_at_any_point_is_not_heard(kind: Kind) -> None:
    """Nothing is left of its time, so the answer leaves while its replica still lives."""

    async def cells(here: Field) -> None:
        for number, (cut, after) in enumerate(CUTS.items(), 1):
            doomed = await here.replica()
            doomed.sim.faults.plan = Fault(
                mode="hang_stream", after_chunks=here.after(after), times=1
            )
            asked = asyncio.create_task(here.ask(doomed))
            await eventually(lambda engine=doomed: engine.sim.hanging, 5)  # type: ignore[misc]
            notice(here.bench, doomed, 1)
            here.check(await asked, f"notice {cut}")
            assert evacuated(here.bench) == number
            here.bench.kube.drop(POD, doomed.pod)

    await over(kind, cells)


@pytest.mark.fault(37)
@kinds
async def test_three_losses_in_one_answer_are_not_heard(kind: Kind) -> None:
    """The second strikes during the replay or right behind the seam, the third at the end."""

    async def cells(here: Field) -> None:
        engines = [*here.bench.engines.values(), await here.replica(), await here.replica()]
        for after in ((11, 2, here.chunks - 1), (1, 0, 11), (here.chunks - 1, 11, 1)):
            for engine, count in zip(engines, after, strict=False):
                engine.sim.faults.plan = Fault(mode="rst", after_chunks=count, times=1)
            here.check(await here.ask(engines[0]), f"after {after}")
            for engine in engines:
                engine.sim.faults.plan = Fault()

    await over(kind, cells)
