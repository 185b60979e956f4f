"""What one tier, one pod, one person or one disk does wrong ends nobody else's answers."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from spotinference.api import names
from spotinference.api.kinds import POD
from spotinference.gateway.budgets import NAME, Budgets
from spotinference.gateway.spool import Spool
from tests.gateway.test_limits import Clock, OneConfigMap
from tests.gateway.test_usage import QUICK, die, receiver, written
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, bench, chat, stream
from tests.support.scripted import Call, join, scripted, token

UNREADABLE = {
    "no-choice": b'"choices":[null],"finish_reason":null',
    "no-number": b'"choices":[{"index":"x","finish_reason":null}]',
    "no-ids": b'"choices":[{"index":0,"token_ids":["x"],"finish_reason":null}]',
    "no-list": b'"choices":7,"finish_reason":null',
}
"""Looks like a chunk of a good answer from afar."""


@pytest.mark.parametrize("fields", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_a_notice_to_an_engine_that_sends_nonsense_ends_no_gateway(fields: bytes) -> None:
    chunk = b'data: {"id":"chatcmpl-1",%b}\n\n' % fields

    async def nonsense(call: Call) -> None:
        await call.begin()
        await call.send(token(0))
        await call.send(chunk)
        await asyncio.Event().wait()

    async with bench(evacuation_tick_s=0.01) as b, scripted(nonsense) as port, b.http() as http:
        await b.tier("demo")
        await join(b, port)
        arrived: list[bytes] = []
        asked = asyncio.create_task(stream(http, CHAT, chat(), arrived=arrived))
        await eventually(lambda: b"".join(arrived).count(b"data: ") == 2, 5)
        other = await b.replica()
        doomed = {names.ANNOTATION_DOOMED_UNTIL: "2100-01-01T00:00:00Z"}
        b.kube.put(POD, b.pod("scripted", "demo", port, annotations=doomed))
        await eventually(lambda: b.routable() == [other.pod], 5)
        assert (await stream(http, CHAT, chat())).done == 1
        assert not asked.done()  # nothing could be appended to it: it stays to the end
        b.kube.drop(POD, "scripted")
        seen = await asyncio.wait_for(asked, 5)
        assert not seen.clean
        assert seen.error is not None
        assert seen.error["code"] == "not_continuable"


@pytest.mark.parametrize(
    ("args", "annotations"),
    [
        (["--max-num-seqs", "9" * 5000], {}),
        ([], {names.ANNOTATION_DOOMED_UNTIL: "0001-01-01T00:00:00+23:59"}),
    ],
    ids=["slots", "notice"],
)
async def test_a_pod_with_a_number_or_a_time_beyond_all_bounds_ends_no_gateway(
    args: list[str], annotations: dict[str, str]
) -> None:
    async with bench() as b, b.http() as http:
        await b.tier("demo")
        odd = b.pod("odd", "demo", 1, ready=False, annotations=annotations)
        odd["spec"]["containers"][0]["args"] += args
        b.kube.put(POD, odd)
        await b.replica()
        assert (await stream(http, CHAT, chat())).done == 1


BROKEN = ['{"k": "12"}', '{"k": null}', '{"k": [1]}', '{"k": 1.5}', '[["k", {}]]', "[" * 100_000]


@pytest.mark.parametrize("tokens", BROKEN, ids=lambda tokens: tokens[:12])
async def test_a_count_of_tokens_that_a_person_broke_is_told_and_kept(tokens: str) -> None:
    store = OneConfigMap()
    gateway = Budgets(Clock(), "gw-0", store, "ns")
    gateway.add("k", 5)
    await gateway.exchange()
    assert store.body is not None
    text = f'{{"tokens": {tokens}, "flushes": {{}}}}'
    store.body["data"] = {"2026-11": text}
    gateway.add("k", 1)
    await gateway.exchange()
    assert gateway.spent("k") == 6
    assert store.body["data"] == {"2026-11": text}
    assert store.body["metadata"]["name"] == NAME


@pytest.mark.parametrize("call", ["adopt", "unlink"])
async def test_a_disk_that_fails_under_records_that_are_shipped_ends_no_gateway(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[str] = []
    broken = True
    whose: Any = {"adopt": Spool, "unlink": Path}[call]
    works = getattr(whose, call)

    def failing(self: Any, *args: Any, **more: Any) -> Any:
        if broken and (call == "adopt" or self.is_relative_to(tmp_path)):
            failed.append(call)
            raise OSError(errno.EROFS, "Read-only file system")
        return works(self, *args, **more)

    async with (
        receiver() as ledger,
        bench(usage_spool=tmp_path, usage_url=ledger.url, **QUICK) as b,
        b.http() as http,
    ):
        monkeypatch.setattr(whose, call, failing)
        await b.tier("demo")
        await b.replica()
        assert (await stream(http, CHAT, chat())).done == 1
        await eventually(lambda: len(failed) > 2, 5)
        assert (await stream(http, CHAT, chat())).done == 1
        broken = False
        await eventually(lambda: len(ledger.records) == 2 and not written(tmp_path), 5)
        assert len({record["request"] for record in ledger.records}) == 2


async def test_a_segment_that_somebody_took_away_holds_up_no_other(tmp_path: Path) -> None:
    async with receiver() as ledger:
        ledger.answers = ["hang"]
        async with (
            bench(usage_spool=tmp_path, usage_url=ledger.url, **QUICK) as b,
            b.http() as http,
        ):
            await b.tier("demo")
            await b.replica()
            await stream(http, CHAT, chat())
            await eventually(lambda: ledger.seen, 5)
            for path in tmp_path.glob("*/*.jsonl"):
                path.unlink()
            await stream(http, CHAT, chat())
            await eventually(lambda: len(ledger.records) == 1, 5)


def test_a_folder_that_two_take_over_at_once_fails_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has removed the lock and not yet the folder: the second makes a lock there."""
    first, second = (Spool(tmp_path, name, 1 << 20) for name in "ab")
    dead = Spool(tmp_path, "dead", 1 << 20)
    dead.append(b'{"n":1}\n')
    die(dead)
    rmdir = os.rmdir

    def between(path: Any, **more: Any) -> None:
        monkeypatch.setattr(os, "rmdir", rmdir)
        assert second.adopt() == 0
        rmdir(path, **more)

    monkeypatch.setattr(os, "rmdir", between)
    assert first.adopt() == 1
    assert [len(one.closed()) for one in (first, second)] == [1, 0]
    assert not dead.folder.exists()
    first.close()
    second.close()
