"""Usage records: one per attempt, on the disk before they count, sent until they are taken."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from typer.testing import CliRunner

from spotinference.api.kinds import Json
from spotinference.cli.app import app
from spotinference.devcluster.simengine.faults import Fault
from spotinference.gateway import app as gateway
from spotinference.gateway import spool, usage
from spotinference.gateway.spool import CLOSED, OPEN, Spool, SpoolFull
from tests.gateway.test_responses import PATH as RESPONSES
from tests.gateway.test_responses import ask as response_to
from tests.support.eventually import eventually
from tests.support.fake_kube import FakeKube
from tests.support.gateway import CHAT, COMPLETION, KEY, Bench, bench, chat, completion, stream


def written(root: Path) -> list[dict[str, Any]]:
    return list(spool.read(root))


async def recorded(root: Path, count: int) -> list[dict[str, Any]]:
    await eventually(lambda: len(written(root)) >= count, 5, f"{count} records")
    return written(root)


# --- what a record says --------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_answer_leaves_one_record(tmp_path: Path, *, streamed: bool) -> None:
    async with bench(usage_spool=tmp_path) as b:
        await b.tier("demo")
        engine = await b.replica()
        async with (
            b.http() as session,
            session.post(
                CHAT, json=chat(stream=streamed, max_tokens=9, ignore_eos=True)
            ) as response,
        ):
            await response.read()
            request_id = response.headers["x-request-id"]
        (record,) = await recorded(tmp_path, 1)
    assert record["request"] == request_id == record["engine_request"]
    assert (record["attempt"], record["status"], record["replica"]) == (1, "ok", engine.pod)
    assert (record["tenant"], record["key"], record["tier"]) == ("default", "key-0", "demo")
    assert record["completion_tokens"] == 9
    assert record["prompt_tokens"] > 0
    assert record["total_s"] >= record["ttft_s"] >= 0
    assert (record["itl_p50_s"] is not None) == streamed
    assert record["parked_s"] == 0
    assert KEY not in json.dumps(record)


async def test_gaps_are_those_of_all_chunks_and_a_batch_is_a_number_of_requests(
    tmp_path: Path,
) -> None:
    async with bench(usage_spool=tmp_path, tokens_per_s=100) as b:
        await b.tier("demo")
        await b.replica()
        async with b.http() as session:
            ask = chat(max_tokens=20, ignore_eos=True)
            await asyncio.gather(*(stream(session, CHAT, ask) for _ in range(2)))
        records = await recorded(tmp_path, 2)
    assert sorted(r["batch"] for r in records) == [0, 1]
    # Of 19 gaps ten are no shorter than the median; of one gap that spans the answer, the median is it.
    assert all(10 * r["itl_p50_s"] <= r["total_s"] for r in records)


async def test_an_answer_with_two_continuations_leaves_three_records(tmp_path: Path) -> None:
    async with bench(usage_spool=tmp_path, tokens_per_s=200) as b:
        await b.tier("demo")
        engines = [await b.replica() for _ in range(3)]
        async with b.http() as session:
            arrived: list[bytes] = []
            running = asyncio.create_task(
                stream(session, CHAT, chat(max_tokens=120, ignore_eos=True), arrived=arrived)
            )
            for lost in range(2):
                wanted = len(arrived) + 8
                await eventually(lambda: len(arrived) > wanted, 5)  # noqa: B023 - awaited here
                (busy,) = [e for e in engines if working(b, e.pod)]
                await b.lose_node(busy)
                engines.remove(busy)
                await eventually(lambda: any(working(b, e.pod) for e in engines), 5, f"{lost}")
            seen = await running
        assert seen.done == 1
        records = await recorded(tmp_path, 3)
    assert [(r["attempt"], r["status"]) for r in records] == [(1, "lost"), (2, "lost"), (3, "ok")]
    assert len({r["request"] for r in records}) == 1
    assert len({r["engine_request"] for r in records}) == 3
    assert sum(r["completion_tokens"] for r in records) == 120
    assert all(r["completion_tokens"] > 0 for r in records)
    assert [r["prompt_tokens"] > 0 for r in records] == [True, False, False]
    assert [r["replayed_tokens"] > 0 for r in records] == [False, True, True]
    assert {r["continuations"] for r in records} == {2}


def working(b: Bench, pod: str) -> bool:
    tiers = b.gateway.context.catalogue.of("default")
    replicas = [r for tier in tiers for r in b.gateway.context.replicas.of(tier.ref)]
    return any(r.name == pod and r.outstanding for r in replicas)


async def test_gaps_between_tokens_are_those_of_the_whole_answer(tmp_path: Path) -> None:
    async with bench(usage_spool=tmp_path, tokens_per_s=50) as b:
        await b.tier("demo")
        await b.replica()
        async with b.http() as session:
            await stream(session, CHAT, chat(max_tokens=20, ignore_eos=True))
        (record,) = await recorded(tmp_path, 1)
    assert record["itl_p95_s"] >= record["itl_p50_s"] > 0.01  # the engine takes 0.02 s per token
    assert record["itl_p50_s"] < record["total_s"] / 4  # not the one gap from first to last


@pytest.mark.fault(60)
async def test_a_client_that_leaves_is_billed_for_what_it_got(tmp_path: Path) -> None:
    async with bench(usage_spool=tmp_path, tokens_per_s=100) as b:
        await b.tier("demo")
        await b.replica()
        async with b.http() as session, session.post(CHAT, json=chat(max_tokens=2000)) as response:
            for _ in range(10):
                await response.content.readany()
            response.close()
        (record,) = await recorded(tmp_path, 1)
    assert record["status"] == "client_gone"
    assert 5 < record["completion_tokens"] < 2000


async def test_a_client_that_leaves_pays_for_all_its_prompts(tmp_path: Path) -> None:
    async with bench(usage_spool=tmp_path, tokens_per_s=100) as b:
        await b.tier("demo")
        await b.replica()
        prompts = ["once upon a time", "there was a very small fox", "who"]
        async with b.http() as session:
            whole = await stream(session, COMPLETION, completion(prompts, max_tokens=2))
            assert whole.done == 1
            body = completion(prompts, max_tokens=2000)
            async with session.post(COMPLETION, json=body) as response:
                for _ in range(20):
                    await response.content.readany()
                response.close()
        paid, left = await recorded(tmp_path, 2)
    assert left["status"] == "client_gone"
    assert left["prompt_tokens"] == paid["prompt_tokens"] > 0


UNNAMED = {
    "responses": (RESPONSES, response_to(max_output_tokens=2000, stream=True)),
    "echo": (COMPLETION, completion(max_tokens=2000, echo=True)),
    "off": (CHAT, chat(max_tokens=2000)),
}


@pytest.mark.parametrize("kind", UNNAMED)
async def test_a_client_that_leaves_pays_also_where_the_engine_names_no_tokens(
    tmp_path: Path, kind: str
) -> None:
    path, body = UNNAMED[kind]
    async with bench(usage_spool=tmp_path, tokens_per_s=100) as b:
        await b.tier("demo", interruption={"continuation": "off" if kind == "off" else "auto"})
        await b.replica()
        async with b.http() as session, session.post(path, json=body) as response:
            raw = b""
            while raw.count(b"data:") < 15:
                raw += await response.content.readany()
            response.close()
        (record,) = await recorded(tmp_path, 1)
    assert record["status"] == "client_gone"
    assert 5 < record["completion_tokens"] < 2000
    assert record["prompt_tokens"] > 0


async def test_what_a_response_costs_twice_stands_in_its_records(tmp_path: Path) -> None:
    async with bench(usage_spool=tmp_path) as b:
        await b.tier("demo")
        engine = await b.replica()
        await b.replica()
        engine.sim.faults.plan = Fault(mode="rst", after_chunks=9, times=1)
        async with b.http() as http:
            with b.preferring(engine):
                body = response_to(ignore_eos=True, stream=True)
                assert (await stream(http, RESPONSES, body)).clean
        lost, last = await recorded(tmp_path, 2)
    assert lost["completion_tokens"] == 9
    assert last["completion_tokens"] == 40 - 9
    assert last["replayed_tokens"] > 9


async def test_a_replica_that_takes_nothing_repeats_nothing(tmp_path: Path) -> None:
    async with bench(usage_spool=tmp_path) as b:
        await b.tier("demo")
        engine, full = await b.replica(), await b.replica()
        full.sim.faults.plan = Fault(mode="status", status=503)
        engine.sim.faults.plan = Fault(mode="rst", after_chunks=8, times=1)
        async with b.http() as http:
            with b.preferring(engine):
                body = chat(max_tokens=20, ignore_eos=True)
                cut = asyncio.create_task(stream(http, CHAT, body))
                await eventually(lambda: len(full.sim.requests) > 0, 5)
            assert (await cut).clean
        lost, last = await recorded(tmp_path, 2)
    assert last["replayed_tokens"] == lost["prompt_tokens"] + 8


async def test_what_no_engine_took_leaves_no_record(tmp_path: Path) -> None:
    async with bench(usage_spool=tmp_path) as b:
        await b.tier("demo", wake={"cap": "1s", "budget": "1s"})
        async with b.http() as session:
            async with session.post(CHAT, json=chat(stream=False)) as response:
                assert response.status == 504
            async with session.post(CHAT, json=chat(model="none")) as response:
                assert response.status == 404
    assert written(tmp_path) == []


def die(one: Spool) -> None:
    """As a kill leaves it: nothing closed in order, the lock free."""
    assert one._lock is not None
    one._lock.close()
    if one._file is not None:
        one._file.close()


# --- the spool -----------------------------------------------------------------------------------


def test_what_was_acknowledged_before_a_kill_is_there_exactly_once(tmp_path: Path) -> None:
    acknowledged = 0
    for start in range(0, 200, 100):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.gateway.usage_writer", str(tmp_path), str(start)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert process.stderr is not None
        said: list[bytes] = []
        with process.stderr as acknowledgements:
            try:
                for line in acknowledgements:
                    said.append(line)
                    if int(line) >= start + 60 + acknowledged % 7:
                        break
            finally:
                process.kill()
                said += acknowledgements.readlines()
                process.wait(5)
        acknowledged = max(int(line) for line in said if line.endswith(b"\n"))
        survivor = Spool(tmp_path, "next", 1 << 30)
        numbers = Counter(r["number"] for r in written(tmp_path))
        assert all(numbers[n] == 1 for n in range(start, acknowledged + 1))
        assert max(numbers.values()) == 1
        assert all(path.suffix == CLOSED for path in survivor.closed())
        survivor.close()


def test_a_torn_last_line_is_cut_off_and_the_rest_kept(tmp_path: Path) -> None:
    first = Spool(tmp_path, "a", 1 << 20)
    first.append(b'{"n":1}\n{"n":2}\n')
    (open_segment,) = first.folder.glob(f"*{OPEN}")
    with open_segment.open("ab") as file:
        file.write(b'{"n":3')
    assert [r["n"] for r in written(tmp_path)] == [1, 2]
    second = Spool(tmp_path, "b", 1 << 20)
    assert second.closed() == []  # the first one lives
    die(first)
    assert second.adopt() == 1
    (taken,) = second.closed()
    assert taken.read_bytes() == b'{"n":1}\n{"n":2}\n'
    assert taken.stem.partition("-")[2] == open_segment.stem.partition("-")[2]
    assert not first.folder.exists()
    second.close()


def test_a_spool_that_is_closed_takes_nothing_over_and_loses_nothing(tmp_path: Path) -> None:
    dead, closed = Spool(tmp_path, "a", 1 << 20), Spool(tmp_path, "b", 1 << 20)
    dead.append(b'{"n":1}\n')
    die(dead)
    closed.close()
    assert closed.adopt() == 0  # its process ends, but its shipping is not stopped yet
    assert [r["n"] for r in written(tmp_path)] == [1]


def test_a_full_spool_keeps_what_it_has(tmp_path: Path) -> None:
    full = Spool(tmp_path, "a", 20)
    full.append(b'{"n":1}\n')
    with pytest.raises(SpoolFull, match="20 bytes"):
        full.append(b'{"n":2222222222}\n')
    full.append(b'{"n":3}\n')
    assert [r["n"] for r in written(tmp_path)] == [1, 3]
    full.close()


def test_a_failed_write_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Spool(tmp_path, "a", 1 << 20)
    one.append(b'{"n":1}\n')
    fsync = os.fsync
    failures = [OSError(5, "no"), OSError(5, "no")]

    def failing(descriptor: int) -> None:
        if failures:
            raise failures.pop()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            one.append(b'{"n":2}\n')
    one.append(b'{"n":3}\n')
    assert [r["n"] for r in written(tmp_path)] == [1, 3]
    one.close()


def test_a_segment_that_cannot_be_closed_is_written_on_and_nothing_is_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "SEGMENT_BYTES", 10)
    one = Spool(tmp_path, "a", 1 << 20)
    rename = Path.rename
    failures = [OSError(28, "no")]

    def failing(path: Path, target: Path) -> Path:
        if failures:
            raise failures.pop()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    one.append(b'{"number":1}\n')
    one.append(b'{"number":2}\n')
    assert [r["number"] for r in written(tmp_path)] == [1, 2]
    assert len(one.closed()) == 1
    one.close()


# --- shipping ------------------------------------------------------------------------------------


class Receiver:
    """Takes batches as a ledger does: each idempotency key counts once."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        """what becomes of the next batches; then all are taken"""
        self.seen: list[str] = []
        self.batches: dict[str, list[dict[str, Any]]] = {}
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        key = request.headers["Idempotency-Key"]
        body = await request.read()
        self.seen.append(key)
        answer = self.answers.pop(0) if self.answers else "take"
        if answer in {"take", "take and fail", "take and hang"}:
            self.batches[key] = [orjson.loads(line) for line in body.splitlines()]
        if answer.endswith("hang"):
            await asyncio.sleep(30)
        if answer.endswith("drop"):
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=500 if answer.endswith("fail") else 204)

    @property
    def records(self) -> list[dict[str, Any]]:
        return [record for batch in self.batches.values() for record in batch]


@contextlib.asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    ours = Receiver()
    runner = web.ServerRunner(
        web.Server(ours.handle, handler_cancellation=True), shutdown_timeout=0.1
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ours.url = f"http://127.0.0.1:{runner.addresses[0][1]}/records"
        yield ours
    finally:
        await runner.cleanup()


QUICK = {
    "usage_ship_s": 0.05,
    "usage_timeout_s": 0.3,
    "usage_retry_s": 0.01,
    "usage_retry_max_s": 0.05,
}


@pytest.mark.parametrize(
    "answers",
    [[], ["fail", "fail"], ["drop"], ["hang"], ["take and fail"], ["take and hang", "drop"]],
    ids=lambda answers: ", then ".join(answers) or "good",
)
async def test_each_record_counts_once_whatever_the_receiver_does(
    tmp_path: Path, answers: list[str]
) -> None:
    async with receiver() as ledger:
        ledger.answers = list(answers)
        async with bench(usage_spool=tmp_path, usage_url=ledger.url, **QUICK) as b:
            await b.tier("demo")
            await b.replica()
            async with b.http() as session:
                for _ in range(3):
                    async with session.post(CHAT, json=chat(stream=False)) as response:
                        assert response.status == 200
            await eventually(lambda: len(ledger.records) == 3 and not written(tmp_path), 10)
        assert len({(r["request"], r["attempt"]) for r in ledger.records}) == 3
        if answers:
            assert ledger.seen[0] == ledger.seen[1]  # the same batch under the same key


async def test_records_of_a_gateway_that_died_are_sent_by_the_next(tmp_path: Path) -> None:
    dead = Spool(tmp_path, "dead", 1 << 20)
    dead.append(b'{"request":"r","attempt":1}\n')
    die(dead)
    async with receiver() as ledger, bench(usage_spool=tmp_path, usage_url=ledger.url, **QUICK):
        await eventually(lambda: [r["request"] for r in ledger.records] == ["r"], 5)


async def test_a_gateway_that_ends_sends_what_it_has(tmp_path: Path) -> None:
    async with receiver() as ledger:
        rarely = QUICK | {"usage_ship_s": 30}
        async with bench(usage_spool=tmp_path, usage_url=ledger.url, **rarely) as b:
            await b.tier("demo")
            await b.replica()
            async with b.http() as session, session.post(CHAT, json=chat(stream=False)) as response:
                assert response.status == 200
        assert len(ledger.records) == 1
        assert written(tmp_path) == []


async def test_a_receiver_that_hangs_holds_no_gateway_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "LAST_SHIPMENT_S", 0.2)
    async with receiver() as ledger:
        ledger.answers = ["hang"] * 100
        patient = QUICK | {"usage_timeout_s": 600}
        async with asyncio.timeout(60):
            async with bench(usage_spool=tmp_path, usage_url=ledger.url, **patient) as b:
                await b.tier("demo")
                await b.replica()
                async with b.http() as session:
                    await session.post(CHAT, json=chat(stream=False))
                await eventually(lambda: ledger.seen, 5)
        assert len(written(tmp_path)) == 1


async def test_an_api_server_that_hangs_keeps_no_last_record_from_being_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "LAST_EXCHANGE_S", 0.2)
    monkeypatch.setattr(FakeKube, "get", lambda *_: asyncio.sleep(600))
    async with receiver() as ledger:
        rarely: Json = QUICK | {"usage_ship_s": 30, "namespace": "ours"}
        async with asyncio.timeout(60):
            async with bench(usage_spool=tmp_path, usage_url=ledger.url, **rarely) as b:
                await b.tier("demo")
                await b.replica()
                async with b.http() as session:
                    await session.post(CHAT, json=chat(stream=False))
                b.gateway.context.limits._budgets.add("key-0", 1)
        assert len(ledger.records) == 1


# --- reading -------------------------------------------------------------------------------------


def test_the_command_lists_and_sums(tmp_path: Path) -> None:
    one = Spool(tmp_path, "a", 1 << 20)
    for number in (1, 2):
        record = {
            "at": "t", "request": f"r{number}", "attempt": 1, "tenant": "a", "key": "k",
            "tier": "demo", "replica": "p", "status": "ok", "prompt_tokens": 3,
            "cached_tokens": 0, "completion_tokens": 10 * number, "replayed_tokens": 0,
            "total_s": 0.1,
        }  # fmt: skip
        one.append(orjson.dumps(record) + b"\n")
    runner = CliRunner()
    found = runner.invoke(app, ["usage", "list", "--spool", str(tmp_path), "--json"])
    assert [json.loads(line)["request"] for line in found.stdout.splitlines()] == ["r1", "r2"]
    found = runner.invoke(app, ["usage", "sum", "--spool", str(tmp_path), "--json", "--by", "key"])
    assert json.loads(found.stdout) == [
        {"key": "k", "attempts": 2, "prompt_tokens": 6, "cached_tokens": 0,
         "completion_tokens": 30, "replayed_tokens": 0}
    ]  # fmt: skip
    one.close()
    assert "30" in runner.invoke(app, ["usage", "sum", "--spool", str(tmp_path)]).stdout
