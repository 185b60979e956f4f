"""Answers that outlive a connection: a retry joins, a lost client comes back for the rest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from spotinference.api.kinds import Json
from tests.gateway.test_keys import rekey
from tests.gateway.test_usage import recorded
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, OTHER_KEY, Bench, Engine, Seen, bench, chat


@contextlib.asynccontextmanager
async def serving(
    tokens_per_s: float = 0.0, **settings: Any
) -> AsyncIterator[tuple[Bench, Engine, aiohttp.ClientSession]]:
    async with bench(tokens_per_s=tokens_per_s, **settings) as b:
        await b.tier("demo")
        engine = await b.replica()
        async with b.http() as session:
            yield b, engine, session


async def ask(
    session: aiohttp.ClientSession,
    body: Json | None,
    *,
    upto: int | None = None,
    numbered: bool = False,
    arrived: list[bytes] | None = None,
    **headers: str,
) -> Seen:
    """The answer, or so many bytes of it, after which the client is gone."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    if numbered:
        names["x-spotinference-event-ids"] = "true"
    raw = b""
    async with session.post(CHAT, json=body, headers=names) as response:
        clean = True
        try:
            async for data in response.content.iter_any():
                raw += data
                if arrived is not None:
                    arrived.append(data)
                if upto is not None and len(raw) >= upto:
                    response.close()
                    clean = False
                    break
        except aiohttp.ClientError:
            clean = False
        return Seen(response.status, response.headers, raw, clean)


def ids(raw: bytes) -> list[bytes]:
    return [line[4:] for line in raw.split(b"\n") if line.startswith(b"id: ")]


def ended(seen: Seen) -> bool:
    return without_ids(seen.raw).count(b"data: [DONE]\n\n") == 1


def without_ids(raw: bytes) -> bytes:
    lines = [line for line in raw.split(b"\n") if not line.startswith(b"id: ")]
    return b"\n".join(lines)


# --- Idempotency-Key -----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_a_retry_of_a_finished_request_gets_its_answer_and_pays_nothing(
    tmp_path: Any, *, stream: bool
) -> None:
    async with serving(usage_spool=tmp_path) as (b, _, session):
        body = chat(stream=stream, temperature=1)
        first = await ask(session, body, Idempotency_Key="k-1")
        again = await ask(session, body, Idempotency_Key="k-1")
        assert first.status == again.status == 200
        assert again.raw == first.raw
        assert again.clean
        assert again.headers["x-request-id"] == first.headers["x-request-id"]
        assert again.headers["Content-Type"] == first.headers["Content-Type"]
        assert (first.headers.get("x-spotinference-joined"), again.headers["x-spotinference-joined"]) == (None, "true")  # fmt: skip
        other = await ask(session, body, Idempotency_Key="k-2")
        assert other.headers["x-request-id"] != first.headers["x-request-id"]
        assert len(await recorded(tmp_path, 2)) == 2
        assert len(b.gateway.context.replays._by_request) == 2


async def test_a_retry_joins_the_request_that_runs() -> None:
    async with serving(tokens_per_s=100) as (b, _, session):
        body = chat(max_tokens=60, ignore_eos=True)
        first = asyncio.create_task(ask(session, body, Idempotency_Key="k"))
        await eventually(lambda: working(b), 5)
        second = asyncio.create_task(ask(session, body, Idempotency_Key="k"))
        await eventually(lambda: players(b) == 2, 5)
        assert len(b.gateway.context.replays._by_request) == 1
        one, two = await first, await second
        assert one.raw == two.raw
        assert one.done == two.done == 1
        assert one.clean
        assert two.clean


async def test_a_client_that_lost_its_connection_joins_by_its_retry() -> None:
    async with serving(tokens_per_s=200) as (b, _, session):
        body = chat(max_tokens=80, ignore_eos=True)
        lost = await ask(session, body, upto=1500, Idempotency_Key="k")
        await eventually(lambda: players(b) == 0, 5)
        assert working(b)  # it goes on
        whole = await ask(session, body, Idempotency_Key="k")
        assert whole.raw.startswith(lost.raw)
        assert whole.done == 1
        assert whole.usages == []


async def test_an_answer_that_nobody_comes_back_for_ends() -> None:
    async with serving(tokens_per_s=50, resume_s=0.1) as (b, _, session):
        await ask(session, chat(max_tokens=2000), upto=500, Idempotency_Key="k")
        await eventually(lambda: not working(b), 5, "the engine is let go")
        await eventually(lambda: not b.gateway.context.replays._by_request, 5, "forgotten")


async def test_a_key_that_belongs_to_another_body_is_refused() -> None:
    async with serving() as (_, _, session):
        await ask(session, chat("one"), Idempotency_Key="k")
        seen = await ask(session, chat("two"), Idempotency_Key="k")
        assert seen.status == 409
        assert b"idempotency_key_reused" in seen.raw
        assert seen.headers["x-should-retry"] == "false"


async def test_keys_of_others_are_other_keys() -> None:
    async with serving() as (b, _, session):
        body = chat()
        first = await ask(session, body, Idempotency_Key="k")
        async with b.http(OTHER_KEY) as other:
            seen = await ask(other, body, Idempotency_Key="k")
            assert seen.status == 404  # of another namespace: no such model, and no join
            seen = await ask(other, None, Last_Event_ID=first.headers["x-request-id"])
            assert seen.status == 404
            assert b"answer_gone" in seen.raw


async def test_a_failure_is_tried_anew() -> None:
    async with bench() as b:
        await b.tier("demo", wake={"cap": "1s", "budget": "1s"})
        async with b.http() as session:
            body = chat(stream=False)
            seen = await ask(session, body, Idempotency_Key="k")
            assert seen.status == 504
            await b.replica()
            seen = await ask(session, body, Idempotency_Key="k")
            assert seen.status == 200


async def test_a_recorded_answer_keeps_its_client_alive_too() -> None:
    async with bench(fail_fast_s=0.05, heartbeat_s=0.02) as b:
        await b.tier("demo")
        await rekey(b, keep_alive=True)
        async with b.http() as session:
            spaces: list[list[bytes]] = [[], []]
            body = chat(stream=False)
            asking = asyncio.create_task(ask(session, body, arrived=spaces[0], Idempotency_Key="k"))
            await eventually(lambda: b.parked() == 1, 5)
            joining = asyncio.create_task(
                ask(session, body, arrived=spaces[1], Idempotency_Key="k")
            )
            await eventually(lambda: all(len(b"".join(seen)) >= 2 for seen in spaces), 5)
            await b.replica()
            for seen in (await asking, await joining):
                assert seen.raw.startswith(b"  ")
                assert b'"choices"' in seen.raw
                assert seen.clean


# --- Last-Event-ID -------------------------------------------------------------------------------


async def test_a_stream_has_ids_only_when_they_are_asked_for() -> None:
    async with serving() as (_, _, session):
        body = chat(max_tokens=5, seed=1)
        plain = await ask(session, body)
        numbered = await ask(session, body, numbered=True)
        assert ids(plain.raw) == []
        count = without_ids(numbered.raw).count(b"data: ")
        name = numbered.headers["x-request-id"].encode()
        assert ids(numbered.raw) == [b"%b:%d" % (name, n + 1) for n in range(count)]
        assert count == plain.raw.count(b"data: ")


@pytest.mark.parametrize("after", [0, 1, 7])
async def test_a_client_comes_back_for_the_rest(after: int) -> None:
    async with serving(tokens_per_s=200) as (b, _, session):
        body = chat(max_tokens=60, ignore_eos=True)
        lost = await ask(session, body, upto=2500, numbered=True)
        name = lost.headers["x-request-id"]
        assert len(ids(lost.raw)) > after
        last = f"{name}:{after}" if after else name
        rest = await ask(session, None, Last_Event_ID=last)
        assert rest.status == 200
        assert ended(rest)
        assert rest.clean
        assert ids(rest.raw)[0] == f"{name}:{after + 1}".encode()
        whole = await ask(session, None, Last_Event_ID=name)
        assert whole.raw.endswith(rest.raw)
        assert whole.raw.startswith(lost.raw[: lost.raw.rfind(b"\n\n")])
        assert not working(b)


async def test_a_stream_that_is_aborted_ends_so_for_who_comes_back() -> None:
    async with serving(tokens_per_s=100, max_losses=0) as (b, engine, session):
        task = asyncio.create_task(ask(session, chat(max_tokens=500), numbered=True))
        await eventually(lambda: working(b), 5)
        await eventually(lambda: recording(b).size > 500, 5)
        await b.lose_node(engine)
        seen = await task
        assert not seen.clean
        again = await ask(session, None, Last_Event_ID=seen.headers["x-request-id"])
        assert not again.clean
        assert b'"error"' in again.raw
        assert again.raw == seen.raw
        assert not ended(again)


@pytest.mark.parametrize("last", ["x", "0" * 31, "0" * 32 + ":", "0" * 32 + ":-1"])
async def test_a_wrong_id_is_named(last: str) -> None:
    async with serving() as (_, _, session):
        seen = await ask(session, None, Last_Event_ID=last)
        assert seen.status == 400
        assert b"Last-Event-ID" in seen.raw


async def test_an_unknown_answer_is_gone() -> None:
    async with serving() as (_, _, session):
        seen = await ask(session, None, Last_Event_ID="0" * 32)
        assert seen.status == 404
        assert b"answer_gone" in seen.raw


# --- bounds --------------------------------------------------------------------------------------


async def test_a_long_answer_is_forgotten_from_its_beginning_and_never_grows() -> None:
    async with serving(max_recording_bytes=4000) as (b, _, session):
        body = chat(max_tokens=400, ignore_eos=True)
        seen = await ask(session, body, numbered=True, Idempotency_Key="k")
        assert ended(seen)
        assert len(seen.raw) > 40_000
        assert recording(b).size < 8000
        name = seen.headers["x-request-id"]
        assert (await ask(session, body, Idempotency_Key="k")).status == 404
        last = ids(seen.raw)[-3].decode()
        rest = await ask(session, None, Last_Event_ID=last)
        assert seen.raw.endswith(rest.raw)
        assert len(ids(rest.raw)) == 2
        assert name in last


async def test_while_a_client_lags_the_engine_is_not_read() -> None:
    async with serving(max_recording_bytes=4000, resume_s=5) as (b, _, session):
        body = chat(max_tokens=2000, ignore_eos=True)
        await ask(session, body, upto=100, numbered=True, Idempotency_Key="k")
        await eventually(lambda: players(b) == 0, 5)
        assert recording(b).size < 60_000
        assert not recording(b).over


async def test_no_more_is_recorded_than_may_be() -> None:
    async with serving(tokens_per_s=50, max_recordings=1) as (b, _, session):
        first = asyncio.create_task(ask(session, chat(max_tokens=20), Idempotency_Key="a"))
        await eventually(lambda: working(b), 5)
        seen = await ask(session, chat(), Idempotency_Key="b")
        assert seen.status == 429
        assert b"recordings_full" in seen.raw
        assert (await ask(session, chat(max_tokens=1))).status == 200
        await first
        assert (await ask(session, chat(), Idempotency_Key="b")).status == 200
        assert len(b.gateway.context.replays._by_request) == 1


def recording(b: Bench) -> Any:
    (one,) = b.gateway.context.replays._by_request.values()
    return one


def players(b: Bench) -> int:
    return len(recording(b).players)


def working(b: Bench) -> bool:
    """Whether the engine is at work."""
    return any(
        replica.outstanding
        for tier in b.gateway.context.catalogue.of("default")
        for replica in b.gateway.context.replicas.of(tier.ref)
    )
