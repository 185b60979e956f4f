"""An API server that cuts, freezes, forgets, refuses or is slow: the operator stays right.

The operator runs behind a proxy that the test makes fail; the world is read past the proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

from spotinference.api.kinds import DEPLOYMENT, TIER
from tests.cluster.operators import (
    Operator,
    asking,
    children,
    drop_tier,
    leading,
    make_tier,
    operator,
    phase,
    replicas,
    scale_writes,
    status,
    warm,
)
from tests.support.api_proxy import ApiProxy, Refusal, Seen, api_proxy
from tests.support.cluster import LiveCluster, Started, connect, start
from tests.support.eventually import eventually

pytestmark = pytest.mark.cluster

RELISTS = "spotinference_operator_relists_total"
SILENCE_S = 3.0
"""Instead of 70 s: a watch of which nothing was heard for so long is frozen."""


@pytest.fixture(scope="module")
def bare_process(cluster_home: Path) -> Iterator[Started]:
    started = start(operator=False, gateway=False)
    yield started
    started.stop()


@dataclass
class Bench:
    live: LiveCluster
    api: ApiProxy
    operator: Operator
    ns: str


@pytest.fixture
async def bench(
    bare_process: Started, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Bench]:
    """A leading operator behind a proxy, and a tier of it that sleeps."""
    settings = getattr(request, "param", {})
    async with connect(bare_process) as live, api_proxy(live, tmp_path) as api:
        ns = await live.namespace("api-faults")
        with operator(live, kubeconfig=api.kubeconfig, **settings) as it:
            await leading(it)
            await make_tier(live, "asleep", ns, scaling={"maxReplicas": 2, "idleTimeout": "1h"})
            await warm(live, "asleep", ns)
            await phase(live, "asleep", ns, "Asleep")
            yield Bench(live, api, it, ns)
            api.fault, api.cut_off = lambda _: None, False
            await drop_tier(live, "asleep", ns)
            # Here and not by `operator`, which waits without this loop: the proxy must live so long.
            it.process.terminate()
            await it.exit_code(20)


async def deployments_are_back(b: Bench) -> None:
    async def back() -> bool:
        now = await status(b.live, "asleep", b.ns)
        made = await children(b.live, DEPLOYMENT, "asleep", b.ns)
        assert len(made) == len(now["markets"])
        return True

    await eventually(back, 60, "the operator has made the lost Deployment again")


async def wakes(b: Bench) -> None:
    async with asking(b.live, "asleep", b.ns):
        await phase(b.live, "asleep", b.ns, "Ready")


def lists_by_path(seen: list[Seen]) -> Counter[str]:
    return Counter(s.path for s in seen if s.lists and s.status == 200 and _is_collection(s.path))


def _is_collection(path: str) -> bool:
    return path.rsplit("/", 1)[-1] in {"inferencetiers", "deployments", "pods", "nodes", "gpupools"}


@pytest.mark.fault(5)
async def test_events_lost_with_a_dropped_watch_are_made_good_by_one_list(bench: Bench) -> None:
    """FAULTS 5."""
    mark = len(bench.api.seen)
    bench.api.cut_off = True
    bench.api.drop_watches()
    (lost, *_) = await children(bench.live, DEPLOYMENT, "asleep", bench.ns)
    await bench.live.kube.delete(DEPLOYMENT, lost["metadata"]["name"], bench.ns)
    bench.api.cut_off = False
    await deployments_are_back(bench)
    await wakes(bench)
    # Kopf's own, and the one that tells what was deleted meanwhile.
    assert max(lists_by_path(bench.api.since(mark)).values(), default=0) <= 2


@pytest.mark.fault(6)
@pytest.mark.parametrize("bench", [{"watch_silence_s": str(SILENCE_S)}], indirect=True)
async def test_a_frozen_watch_is_noticed_and_begun_anew(bench: Bench) -> None:
    """FAULTS 6."""
    mark = len(bench.api.seen)
    frozen = bench.api.freeze_watches()
    assert frozen >= 5
    async with asking(bench.live, "asleep", bench.ns):
        await phase(bench.live, "asleep", bench.ns, "Ready")
    begun = [s for s in bench.api.since(mark) if s.watch and s.path.endswith("/leases")]
    assert begun, "the watch of demand was not begun anew"
    assert bench.operator.process.poll() is None


@pytest.mark.fault(7)
async def test_a_version_that_is_too_old_is_a_new_list_and_no_deletion(bench: Bench) -> None:
    """FAULTS 7."""
    mark = bench.live.mark()
    gone = {
        "type": "ERROR",
        "object": {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "reason": "Expired",
            "message": "too old resource version",
            "code": 410,
        },
    }

    def lists() -> int:
        counts = lists_by_path(bench.api.seen)
        return sum(n for path, n in counts.items() if path.endswith("/inferencetiers"))

    # While the list at the start waits to be compared, another one is no news.
    await eventually(lambda: lists() >= 2, 30, "what was listed at the start is compared")
    before = bench.operator.metric(RELISTS, kind="InferenceTier")
    assert bench.api.end_watches_with(gone) >= 5
    await wakes(bench)
    await eventually(
        lambda: bench.operator.metric(RELISTS, kind="InferenceTier") > before,
        30,
        "the tiers are listed anew",
    )
    assert [r for r in bench.live.audit(mark, user="operator") if r.verb == "delete"] == []
    assert bench.operator.process.poll() is None


@pytest.mark.fault(8)
async def test_a_list_that_fails_in_its_middle_deletes_nothing(bench: Bench) -> None:
    """FAULTS 8."""
    mark = bench.live.mark()
    failed: list[str] = []

    def fault(request: web.Request) -> Refusal | None:
        paged = request.query.get("limit") and request.query.get("watch") not in {"true", "1"}
        if request.method == "GET" and paged and len(failed) < 12:
            failed.append(request.path)
            return Refusal(500, "InternalError")
        return None

    bench.api.fault = fault
    bench.api.drop_watches()

    async def tried() -> bool:
        return len(failed) == 12

    await eventually(tried, 60, "lists fail")
    await wakes(bench)
    assert [r for r in bench.live.audit(mark, user="operator") if r.verb == "delete"] == []


@pytest.mark.fault(9)
async def test_every_third_call_refused_with_retry_after_is_waited_for(bench: Bench) -> None:
    """FAULTS 9."""
    count = 0

    def fault(request: web.Request) -> Refusal | None:
        nonlocal count
        if "/leases/" in request.path:
            return None  # leadership is another story
        count += 1
        return Refusal(429, "TooManyRequests", {"Retry-After": "1"}) if count % 3 == 0 else None

    mark = len(bench.api.seen)
    bench.api.fault = fault
    await wakes(bench)
    bench.api.fault = lambda _: None
    refused = [s for s in bench.api.since(mark) if s.status == 429]
    assert refused
    assert len(bench.api.since(mark)) < 1000
    assert await replicas(bench.live, "asleep", bench.ns)


@pytest.mark.fault(10)
@pytest.mark.parametrize("code", [500, 503, 504])
async def test_a_storm_of_errors_changes_nothing_and_is_over_when_it_is(
    bench: Bench, code: int
) -> None:
    """FAULTS 10."""
    async with asking(bench.live, "asleep", bench.ns):
        before = await phase(bench.live, "asleep", bench.ns, "Ready")
        running = await replicas(bench.live, "asleep", bench.ns)
        bench.api.fault = lambda _: Refusal(code, "InternalError")
        bench.api.drop_watches()
        mark = len(bench.api.seen)

        async def stormed() -> bool:
            return len([s for s in bench.api.since(mark) if s.status == code]) >= 20

        await eventually(stormed, 60, "twenty requests have failed")
        now = await status(bench.live, "asleep", bench.ns)
        assert await replicas(bench.live, "asleep", bench.ns) == running
        assert (now["phase"], now["conditions"]) == (before["phase"], before["conditions"])
        bench.api.fault = lambda _: None
        await make_tier(bench.live, "after", bench.ns)
        await warm(bench.live, "after", bench.ns)
        assert await replicas(bench.live, "asleep", bench.ns) == running
        await drop_tier(bench.live, "after", bench.ns)


@pytest.mark.fault(12)
async def test_another_writer_of_the_tier_is_neither_fought_nor_overwritten(bench: Bench) -> None:
    """FAULTS 12."""
    written = 0

    async def write() -> None:
        nonlocal written
        while True:
            patch = {"metadata": {"annotations": {"example.com/counter": str(written + 1)}}}
            await bench.live.kube.merge_patch(TIER, "asleep", bench.ns, patch)
            written += 1
            await asyncio.sleep(0.05)

    mark = bench.live.mark()
    writing = asyncio.create_task(write())
    try:
        await wakes(bench)
    finally:
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
    tier = await bench.live.kube.get(TIER, "asleep", bench.ns)
    assert tier["metadata"]["annotations"]["example.com/counter"] in {
        str(written),
        str(written + 1),
    }
    mine = bench.live.audit(mark, user="operator")
    assert len(scale_writes(mine, "asleep")) <= 2
    assert [r for r in mine if r.code == 409] == []
    assert len([r for r in mine if r.resource == "inferencetiers/status"]) < 40
