"""Between which engines an answer may go on."""

from __future__ import annotations

import pytest

from spotinference.core.fingerprint import fingerprint

IMAGE = "vllm/vllm-openai:v0.32.0"
BASE = ["/cache/weights/abc", "--max-num-seqs", "64", "--tokenizer=/t", "--lora-modules", "a", "b"]


@pytest.mark.parametrize(
    "args",
    [
        ["/cache/weights/def", *BASE[1:]],
        [*BASE, "--chat-template", "/other.jinja"],
        [*BASE, "--reasoning_parser", "qwen3"],
        [*BASE, "--enable-auto-tool-choice"],
        [BASE[0], "--max-num-seqs", "64", "--tokenizer", "/u", "--lora-modules", "a", "b"],
        [*BASE[:-1], "c"],
    ],
)
def test_what_changes_the_answer_changes_the_fingerprint(args: list[str]) -> None:
    assert fingerprint(IMAGE, args) != fingerprint(IMAGE, BASE)


def test_the_image_counts() -> None:
    assert fingerprint("vllm/vllm-openai:v0.33.0", BASE) != fingerprint(IMAGE, BASE)


@pytest.mark.parametrize(
    "args",
    [
        [BASE[0], "--tokenizer", "/t", "--max-num-seqs", "8", "--lora-modules", "a", "b"],
        [*BASE, "--gpu-memory-utilization=0.8", "--max-model-len", "100"],
    ],
)
def test_speed_size_spelling_and_order_do_not(args: list[str]) -> None:
    assert fingerprint(IMAGE, args) == fingerprint(IMAGE, BASE)


def test_an_engine_without_arguments_has_one_too() -> None:
    assert fingerprint(IMAGE, []) == fingerprint(IMAGE, ["--max-num-seqs", "3"])
