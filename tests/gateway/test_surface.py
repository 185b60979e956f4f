"""What clients may ask, who may ask it, and how they are refused."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from spotinference.api.kinds import TIER
from spotinference.core import chunks
from spotinference.gateway import errors
from tests.support.eventually import eventually
from tests.support.fake_kube import NAMESPACE
from tests.support.gateway import (
    CHAT,
    COMPLETION,
    KEY,
    OTHER_KEY,
    OTHER_NAMESPACE,
    Bench,
    bench,
    chat,
    completion,
    keys_text,
    stream,
)

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "gateway-errors.md"


async def raw(b: Bench, text: bytes) -> bytes:
    """What comes back to these bytes, until the gateway closes or falls silent."""
    host, port = b.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(text)
    try:
        async with asyncio.timeout(5):
            return await reader.read(65536)
    finally:
        writer.close()


def request(target: str = CHAT, *headers: str, body: str = "{}", method: str = "POST") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", body]).encode()


@pytest.mark.fault(63, 68)
@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Authorization: "],
        ["Authorization: Bearer"],
        ["Authorization: Bearer "],
        [f"Authorization: bearer {KEY}"],
        [f"Authorization: Basic {KEY}"],
        [f"Authorization: Bearer {KEY.upper()}"],
        [f"Authorization: Bearer {KEY} "[:-2]],
        [f"Authorization: Bearer {KEY}", f"Authorization: Bearer {KEY}"],
        ["Authorization: Bearer ' OR 1=1 --"],
        ["Authorization: Bearer " + "x" * 5000],
        [f"X-Api-Key: {KEY}"],
    ],
    ids=lambda headers: " + ".join(headers)[:40] or "none",
)
async def test_without_exactly_one_good_key_it_is_401_and_nothing_wakes(headers: list[str]) -> None:
    async with bench() as b:
        await b.tier("demo")
        body = '{"model":"demo","messages":[{"role":"user","content":"x"}]}'
        for target in (CHAT, COMPLETION, f"{CHAT}?key={KEY}"):
            answer = await raw(b, request(target, *headers, body=body))
            assert answer.startswith(b"HTTP/1.1 401 "), answer
            assert b'"code":"invalid_api_key"' in answer
        assert b.kube.writes == []


@pytest.mark.fault(64)
async def test_a_key_opens_its_namespace_and_no_other() -> None:
    async with bench() as b:
        await b.tier("demo")
        await b.tier("theirs", OTHER_NAMESPACE)
        async with b.http(OTHER_KEY) as http:
            for model in ("demo", "default/demo", "../demo", "uid-demo"):
                async with http.post(CHAT, json=chat(model=model)) as response:
                    assert response.status == 404
                    assert (await response.json())["error"]["code"] == "model_not_found"
            async with http.get("/v1/models") as response:
                assert [m["id"] for m in (await response.json())["data"]] == ["theirs"]
        assert b.kube.writes == []


async def test_keys_are_re_read_without_a_restart_and_a_damaged_file_changes_nothing() -> None:
    async with bench() as b:
        await b.tier("demo")

        async def status(key: str) -> int:
            async with b.http(key) as http, http.get("/v1/models") as response:
                return response.status

        b.keys_file.write_text(keys_text(("sk-spot-new", NAMESPACE)))

        async def changed() -> bool:
            return await status("sk-spot-new") == 200 and await status(KEY) == 401

        await eventually(changed, 5)
        b.keys_file.write_text("{ not json")
        await asyncio.sleep(0.2)
        assert await status("sk-spot-new") == 200


@pytest.mark.fault(66)
@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", CHAT),
        ("HEAD", "/v1/models"),
        ("OPTIONS", CHAT),
        ("POST", "/v1/models"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/shutdown"),
        ("POST", "/sleep"),
        ("POST", "/reset_prefix_cache"),
        ("POST", "/v1/images/generations"),
        ("POST", "//v1/chat/completions"),
        ("POST", "/v1//chat/completions"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1/chat/completions;a=b"),
        ("POST", "/v1/%63hat/completions"),
        ("POST", "/v1/models/%2e%2e/chat/completions"),
        ("POST", "/V1/chat/completions"),
        ("GET", "/v1/models/..%2f"),
    ],
)
async def test_everything_but_the_exact_paths_is_404_and_touches_no_engine(
    method: str, target: str
) -> None:
    async with bench() as b:
        await b.tier("demo")
        engine = await b.replica()
        body = '{"model":"demo","messages":[{"role":"user","content":"x"}]}'
        answer = await raw(
            b, request(target, f"Authorization: Bearer {KEY}", body=body, method=method)
        )
        assert answer.startswith(b"HTTP/1.1 404 "), answer
        assert not engine.sim.requests


@pytest.mark.fault(57)
@pytest.mark.parametrize(
    "text",
    [
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n{}"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
        b"Content-Length: 3\r\n\r\n{}"),
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 65536 + b"\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nA: b\x00\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\n"
        + b"".join(b"H%d: v\r\n" % i for i in range(2000)) + b"\r\n",
    ],
    ids=["cl+te", "two-cl", "two-hosts", "obs-fold", "64k-header", "cl-plus", "nul", "2000"],
)  # fmt: skip
async def test_a_message_that_two_parsers_read_differently_is_400_and_closed(text: bytes) -> None:
    async with bench() as b:
        answer = await raw(b, text)
        assert re.match(rb"HTTP/1\.[01] 400 ", answer), answer[:200]


@pytest.mark.fault(57)
async def test_underscore_headers_are_refused() -> None:
    async with bench() as b:
        answer = await raw(b, request(CHAT, f"Authorization: Bearer {KEY}", "X_Tier: demo"))
        assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.fault(59)
async def test_a_slow_head_and_a_slow_body_are_cut_off() -> None:
    async with bench(head_timeout_s=0.3, body_timeout_s=0.3) as b:
        assert await raw(b, b"POST /v1/chat/comp") == b""
        slow = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        answer = await raw(b, f"{slow}Content-Length: 10\r\n\r\n{{".encode())
        assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.fault(59)
async def test_connections_beyond_the_cap_are_closed() -> None:
    async with bench(max_connections=3) as b:
        host, port = b.url.removeprefix("http://").split(":")
        held = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
        reader, writer = await asyncio.open_connection(host, int(port))
        assert await asyncio.wait_for(_end(reader), 30)
        for _, other in [*held, (reader, writer)]:
            other.close()


async def _end(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


BAD_BODIES: list[tuple[Any, str]] = [
    (b"", "invalid_request"),
    (b"not json", "invalid_request"),
    (b"[]", "invalid_request"),
    (b"\xff\xfe", "invalid_request"),
    (b'{"model":"demo","messages":[{"role":"user","content":"\\ud800"}]}', "invalid_request"),
    (b"[" * 100_000, "invalid_request"),
    ({"messages": [{"role": "user"}]}, "invalid_request"),
    ({"model": ["demo"], "messages": [{"role": "user"}]}, "invalid_request"),
    ({"model": "demo"}, "invalid_request"),
    ({"model": "demo", "messages": []}, "invalid_request"),
    ({"model": "demo", "messages": ["hi"]}, "invalid_request"),
    ({"model": "demo", "messages": [{"content": "hi"}]}, "invalid_request"),
    (chat(stream="yes"), "invalid_request"),
    (chat(max_tokens=-1), "invalid_request"),
    (chat(max_tokens="12"), "invalid_request"),
    (chat(n=0), "invalid_request"),
    (chat(stop=[1]), "invalid_request"),
    (chat(stream_options=[]), "invalid_request"),
    (chat(temperature="hot"), "invalid_request"),
]


@pytest.mark.fault(58, 68)
@pytest.mark.parametrize(("body", "code"), BAD_BODIES, ids=range(len(BAD_BODIES)))
async def test_a_body_that_is_wrong_is_400_and_wakes_nobody(body: Any, code: str) -> None:
    async with bench() as b:
        await b.tier("demo")
        sent: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with b.http() as http, http.post(CHAT, **sent) as response:
            assert response.status == 400
            error = (await response.json())["error"]
            assert error["code"] == code
            assert set(error) == {"message", "type", "param", "code"}
            assert response.headers["x-request-id"]
        assert b.kube.writes == []


@pytest.mark.fault(58)
async def test_bodies_have_a_bound_and_are_not_unpacked() -> None:
    async with bench(max_body_bytes=1000) as b:
        await b.tier("demo")
        async with b.http() as http:
            async with http.post(CHAT, data=b"x" * 1001) as response:
                assert response.status == 413

            async def parts() -> Any:
                for _ in range(20):
                    yield b"x" * 100

            async with http.post(CHAT, data=parts()) as response:
                assert response.status == 413
            async with http.post(
                CHAT, data=b"xx", headers={"Content-Encoding": "gzip"}
            ) as response:
                assert response.status == 415


async def test_errors_of_the_engine_are_openai_shaped() -> None:
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        async with b.http() as http:
            for body in (chat(max_tokens=100_000), chat(max_tokens=100_000, stream=False)):
                async with http.post(CHAT, json=body) as response:
                    assert response.status == 400
                    error = (await response.json())["error"]
                    assert isinstance(error["code"], str)
                    assert "4096" in error["message"]


async def test_names_aliases_and_sleeping_tiers_are_models() -> None:
    async with bench() as b:
        model = {"source": "hf://o/n", "servedName": "demo", "aliases": ["gpt-demo"]}
        await b.tier("tier-a", model=model, engine={"maxModelLen": 4096})
        await b.replica("tier-a")
        async with b.http() as http:
            async with http.get("/v1/models") as response:
                data = (await response.json())["data"]
            assert [(m["id"], m["status"]) for m in data] == [
                ("demo", "asleep"),
                ("gpt-demo", "asleep"),
            ]
            seen = await stream(http, COMPLETION, completion(model="demo"))
            assert seen.done == 1
            async with http.post(CHAT, json=chat(model="tier-a")) as response:
                assert response.status == 404


async def test_a_context_window_that_no_spec_states_is_taken_from_the_status() -> None:
    async with bench() as b, b.http() as http:

        async def told(tokens: int | None) -> bool:
            async with http.get("/v1/models/demo") as response:
                return bool((await response.json())["max_model_len"] == tokens)

        known = {"phase": "Asleep", "engine": {"contextWindow": 8192, "specHash": "abc"}}
        await b.tier("demo", status=known)
        assert await told(8192)
        await b.tier("demo", engine={"maxModelLen": 512}, status=known)
        await eventually(lambda: told(512), 5)
        await b.tier("demo", status={"phase": "Asleep"})
        await eventually(lambda: told(None), 5)


async def test_a_model_tells_its_state_context_and_how_long_a_wake_takes() -> None:
    async with bench() as b:
        model = {"source": "hf://o/n", "servedName": "org/demo"}
        status = {"phase": "Asleep", "lastWakeSeconds": 90}
        await b.tier("tier-a", model=model, engine={"maxModelLen": 4096}, status=status)
        async with b.http() as http:
            for path in ("org/demo", "org%2Fdemo"):
                async with http.get(URL(f"{b.url}/v1/models/{path}", encoded=True)) as response:
                    assert response.status == 200
                    assert response.headers["x-request-id"]
                    shown = await response.json()
            assert shown["id"] == "org/demo"
            assert (shown["max_model_len"], shown["status"]) == (4096, "asleep")
            assert (shown["ready_replicas"], shown["eta_seconds"]) == (0, 90)
            await b.replica("tier-a")
            async with http.get("/v1/models/org/demo") as response:
                shown = await response.json()
            assert (shown["ready_replicas"], shown["eta_seconds"]) == (1, None)
            for path in ("tier-a", "org", "../metrics"):
                async with http.get(URL(f"{b.url}/v1/models/{path}", encoded=True)) as response:
                    assert response.status == 404
                    assert (await response.json())["error"]["code"] == "model_not_found"
        async with b.http(OTHER_KEY) as http, http.get("/v1/models/org/demo") as response:
            assert response.status == 404


async def test_a_cut_answer_of_such_a_tier_is_not_told_that_it_was_deleted() -> None:
    async with bench() as b:
        await b.tier("demo")
        lost = await b.replica(tokens_per_s=100)
        async with b.http() as http:
            arrived: list[bytes] = []
            cut = asyncio.create_task(stream(http, CHAT, chat(), arrived=arrived))
            await eventually(lambda: len(arrived) > 4, 5)
            body = b.kube.objects["InferenceTier", NAMESPACE, "demo"]
            b.kube.put(TIER, body | {"spec": body["spec"] | {"wake": {"cap": "soon"}}})
            catalogue = b.gateway.context.catalogue
            await eventually(lambda: catalogue.find(NAMESPACE, "demo") is None, 5)
            await b.lose_node(lost)
            error = (await cut).error
        assert error is not None
        assert error["code"] == "tier_invalid"


async def test_a_tier_of_another_version_is_called_invalid_and_not_deleted() -> None:
    async with bench() as b:
        await b.tier("demo")
        async with b.http() as http:
            waiting = asyncio.create_task(http.post(CHAT, json=chat()))
            await eventually(lambda: b.parked() == 1, 5)
            body = b.kube.objects["InferenceTier", NAMESPACE, "demo"]
            b.kube.put(TIER, body | {"spec": body["spec"] | {"wake": {"cap": "soon"}}})
            for response in (await waiting, await http.post(CHAT, json=chat())):
                assert response.status == 503
                assert response.headers["x-should-retry"] == "false"
                error = (await response.json())["error"]
                assert error["code"] == "tier_invalid"
                assert "spec.wake.cap" in error["message"]
            async with http.get("/v1/models/demo") as shown:
                assert shown.status == 503
            b.kube.put(TIER, body)
            await b.replica()
            assert (await stream(http, CHAT, chat())).done == 1
        async with b.http(OTHER_KEY) as http, http.post(CHAT, json=chat()) as response:
            assert response.status == 404


async def test_work_goes_to_the_replica_with_the_least_of_it() -> None:
    async with bench(tokens_per_s=100) as b:
        await b.tier("demo")
        engines = [await b.replica() for _ in range(3)]
        async with b.http() as http:
            running = [asyncio.create_task(stream(http, CHAT, chat())) for _ in range(9)]
            await eventually(lambda: sum(len(e.sim.requests) for e in engines) == 9, 5)
            assert [len(engine.sim.requests) for engine in engines] == [3, 3, 3]
            await asyncio.gather(*running)


@pytest.mark.fault(65)
async def test_nothing_internal_goes_in_or_out() -> None:
    async with bench() as b:
        await b.tier("demo")
        engine = await b.replica()
        async with b.http() as http:
            mine = {"X-Request-Id": "mine", "X-Forwarded-Host": "evil", "Cookie": "a=b"}
            async with http.post(CHAT, json=chat(), headers=mine) as response:
                await response.read()
                assert "Server" not in response.headers or "aiohttp" in response.headers["Server"]
        sent = engine.sim.requests[-1]["headers"]
        assert isinstance(sent, dict)
        assert not {"Authorization", "Cookie", "X-Forwarded-Host"} & set(sent)
        assert KEY not in str(sent)
        assert sent.get("X-Request-ID") != "mine"


async def test_health_and_readiness_are_on_both_ports_and_metrics_on_the_operational_one() -> None:
    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        async with b.http() as http, aiohttp.ClientSession() as other:
            await stream(http, CHAT, chat())
            for session, base in ((http, ""), (other, b.gateway.metrics_url)):
                for path in ("/healthz", "/readyz"):
                    async with session.get(base + path) as response:
                        assert response.status == 200
            async with http.get("/metrics") as response:
                assert response.status == 404  # names of tiers are nobody's business
            async with other.get(f"{b.gateway.metrics_url}/metrics") as response:
                text = await response.text()
            async with other.post(f"{b.gateway.metrics_url}{CHAT}") as response:
                assert response.status == 404
        assert 'spotinference_gateway_requests_total{code="ok",tier="demo"} 1.0' in text


async def test_a_mistake_of_ours_mid_stream_aborts_and_never_writes_a_second_response(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide, hidden = chunks.hide_token_ids, list[bytes]()

    def broken(raw: bytes) -> bytes:
        hidden.append(raw)
        if len(hidden) > 1:  # with the first the status goes out: before, it would be a true 500
            raise RuntimeError("a bug")
        return hide(raw)

    async with bench() as b:
        await b.tier("demo")
        await b.replica()
        async with b.http() as http:
            monkeypatch.setattr(chunks, "hide_token_ids", broken)
            seen = await stream(http, CHAT, chat())
        assert not seen.clean
        assert seen.error is not None
        assert seen.error["code"] == "internal_error"
        assert b"HTTP/1.1" not in seen.raw


@pytest.mark.fault(70)
async def test_unknown_models_do_not_become_labels() -> None:
    async with bench() as b:
        async with b.http() as http, http.post(CHAT, json=chat(model="a\nb")) as response:
            assert response.status == 404
        text = b.gateway.context.metrics.render().decode()
        assert 'tier="other"' in text
        assert "a\\nb" not in text


@pytest.mark.fault(69)
async def test_sigterm_lets_answers_end_and_cuts_those_that_do_not_with_an_event() -> None:
    """What SIGTERM does, without the process: listening ends, then the drain."""
    seen = []
    async with bench(tokens_per_s=60, drain_s=1.5) as b:
        await b.tier("demo")
        await b.replica()
        http = await stack(b)
        short = asyncio.create_task(stream(http, CHAT, chat(max_tokens=30)))
        long = asyncio.create_task(stream(http, CHAT, chat(max_tokens=2000, ignore_eos=True)))
        await eventually(lambda: len(b.engines["demo-0"].sim.requests) == 2, 5)
        seen = [short, long]
    ended, cut = [await task for task in seen]
    await http.close()
    assert ended.done == 1
    assert ended.clean
    assert cut.done == 0
    assert not cut.clean
    assert cut.error is not None
    assert cut.error["code"] == "gateway_stopping"


async def stack(b: Bench) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(b.url, headers={"Authorization": f"Bearer {KEY}"})


def test_the_docs_show_the_error_table_of_the_code() -> None:
    shown = re.search(r"(\| code .*\n)+(\|.*\n)+", DOCS.read_text())
    assert shown is not None
    assert shown[0] == errors.table()
