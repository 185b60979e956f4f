"""The simulated engine's own promises; what it shares with vLLM is held in tests/engine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference import errors
from spotinference.devcluster.simengine import SimOptions, SimServer, model, options, tokenizer
from spotinference.devcluster.simengine.faults import Fault
from spotinference.devcluster.simengine.language import Speaker

STREAMS = 200

ids = st.lists(st.integers(0, tokenizer.VOCAB_SIZE - 1), min_size=1, max_size=40)

words = st.lists(
    st.integers(tokenizer.FIRST_WORD, tokenizer.FIRST_PUNCTUATION - 1), min_size=1, max_size=40
)


def speak(prompt: list[int], count: int, seed: int | None = None) -> list[int]:
    speaker = Speaker(prompt, seed=seed, output_only=False, eos_mean=0)
    return [speaker.next_token(may_end=False) for _ in range(count)]


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    replaced = text.encode("utf-8", "replace").decode()
    assert tokenizer.decode(tokenizer.encode(text)) == replaced


@given(ids, st.integers(1, 19))
def test_greedy_depends_on_all_tokens_and_not_on_where_the_prompt_ends(
    prompt: list[int], cut: int
) -> None:
    whole = speak(prompt, 20)
    assert speak(prompt + whole[:cut], 20 - cut) == whole[cut:]


@given(ids, st.data())
def test_one_wrong_token_changes_what_follows(prompt: list[int], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(prompt) - 1))
    other = data.draw(st.integers(0, tokenizer.VOCAB_SIZE - 1).filter(lambda i: i != prompt[at]))
    wrong = [*prompt[:at], other, *prompt[at + 1 :]]
    assert speak(wrong, 20) != speak(prompt, 20)


@given(ids, st.integers(0, 2**31))
def test_a_seed_replays_from_the_start_only(prompt: list[int], seed: int) -> None:
    whole = speak(prompt, 20, seed)
    assert speak(prompt, 20, seed) == whole
    assert speak(prompt + whole[:5], 15, seed) != whole[5:]


@given(words)
def test_text_appears_only_when_its_bytes_are_complete(prompt: list[int]) -> None:
    made = speak(prompt, 60)
    decoder = tokenizer.Detokenizer(prompt)
    pieces = [decoder.feed(token) for token in made]
    # The last token may be the first half of a character, which then waits.
    assert "".join(pieces) == tokenizer.decode(made).removesuffix("\ufffd")
    assert "\ufffd" not in "".join(pieces)


def test_flags_are_read_as_vllm_reads_them() -> None:
    argv = ["serve", "/m", "--max_model_len=512", "--served-model-name", "a", "b"]
    argv += ["--port", "9", "--foreign", "x", "--enforce-eager", "--shutdown-timeout", "7"]
    parsed = options.parse(argv, {"SPOTINFERENCE_SIM_TOKENS_PER_S": "12.5"})
    assert (parsed.model, parsed.served_names, parsed.port) == ("/m", ("a", "b"), 9)
    assert (parsed.max_model_len, parsed.shutdown_timeout_s) == (512, 7.0)
    assert (parsed.enforce_eager, parsed.tokens_per_s) == (True, 12.5)


def test_a_cut_weights_file_is_refused(tmp_path: Path) -> None:
    model.write_tiny_repo(tmp_path, weight_bytes=5000)
    model.check(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(4000)
    with pytest.raises(errors.ConfigInvalid, match="MetadataIncompleteBuffer"):
        model.check(tmp_path)


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    model.write_tiny_repo(tmp_path, weight_bytes=100)
    (tmp_path / "config.json").unlink()
    with pytest.raises(errors.ConfigInvalid, match=r"config\.json is missing"):
        model.check(tmp_path)


def test_the_second_start_finds_the_first_ones_kernels(tmp_path: Path) -> None:
    cold = SimOptions(cache_root=tmp_path, compile_s=3)
    assert model.compile_kernels(cold, {}) == (False, 3)
    model.finish_compile(cold, {})
    assert model.compile_kernels(cold, {}) == (True, 0)
    other = SimOptions(cache_root=tmp_path, compile_s=3, env={"VLLM_X": "1"})
    assert model.compile_kernels(other, {}) == (False, 3)


@pytest.fixture
async def server() -> AsyncIterator[SimServer]:
    engine = SimServer(SimOptions(served_names=("m",), tokens_per_s=20))
    await engine.start()
    yield engine
    await engine.stop()


async def read_stream(session: aiohttp.ClientSession, server: SimServer, count: int) -> list[str]:
    body = {"model": "m", "prompt": "a", "stream": True, "temperature": 0, "ignore_eos": True}
    async with session.post(
        f"{server.url}/v1/completions", json={**body, "max_tokens": count}
    ) as response:
        return [line.decode().strip() async for line in response.content if line.strip()]


async def test_two_hundred_streams_keep_their_pace(server: SimServer) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        began = time.process_time()
        answers = await asyncio.gather(*(read_stream(session, server, 20) for _ in range(STREAMS)))
        spent = time.process_time() - began
    assert all(answer[-1] == "data: [DONE]" for answer in answers)
    assert len({json.dumps([json.loads(x[6:])["choices"] for x in a[:-1]]) for a in answers}) == 1
    # Client and server together, per token: 200 streams of 20 tokens/s need less than a core.
    assert spent / (STREAMS * 20) < 0.001, spent


@pytest.mark.parametrize("mode", ["rst", "fin", "fin_mid_line"])
async def test_a_cut_stream_delivers_the_chunks_before_the_cut(
    server: SimServer, mode: Any
) -> None:
    server.faults.plan = Fault(mode=mode, after_chunks=5, times=1)
    got: list[bytes] = []
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):  # noqa: PT012  (the break may come anywhere in it)
            async with session.post(
                f"{server.url}/v1/completions",
                json={"model": "m", "prompt": "a", "stream": True, "max_tokens": 30},
            ) as response:
                async for line in response.content:
                    got.append(line)  # noqa: PERF401  (kept when the connection breaks)
        assert len([line for line in got if line.startswith(b"data: ") and b"}]" in line]) == 5
        assert (await read_stream(session, server, 3))[-1] == "data: [DONE]"


@pytest.mark.parametrize("mode", ["clean_no_done", "done_no_finish"])
async def test_a_stream_may_end_politely_without_being_finished(
    server: SimServer, mode: Any
) -> None:
    server.faults.plan = Fault(mode=mode, after_chunks=4)
    async with aiohttp.ClientSession() as session:
        answer = await read_stream(session, server, 30)
    assert (answer[-1] == "data: [DONE]") == (mode == "done_no_finish")
    assert not any('"finish_reason":"' in line for line in answer)
