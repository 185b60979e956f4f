"""Owned flags of vLLM are refused in every spelling its parser understands; others pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference.api import flags

EVERY_OWNED = sorted(flag for owned in flags.OWNED for flag in owned.flags)

PASS = (
    "--enforce-eager",
    "--seed",
    "--seed=7",
    "--chat-template=/cache/t.jinja",
    "--max-num-queued-reqs=256",
    "--enable-lora",
    "--quantization-config={}",
    "--config-format=hf",
    "--load-format=runai_streamer",
    "--compilation-config.level=3",
    "-O3",
    "-cc.mode=3",
    "-pp=1",
    "8192",
    "-1",
    "-0.5",
    "hermes",
    '{"host": 1}',
)


@pytest.mark.parametrize("argument", PASS)
def test_what_the_operator_does_not_own_passes(argument: str) -> None:
    assert flags.refused(argument) is None


@st.composite
def spellings(draw: st.DrawFn) -> str:
    """An owned flag, cut to a prefix, with any mix of `-` and `_`, with or without a value."""
    flag = draw(st.sampled_from(EVERY_OWNED))
    dashes = 2 if flag.startswith("--") else 1
    shown = flag[: draw(st.integers(dashes, len(flag)))]
    letters = [draw(st.sampled_from("-_")) if c == "-" else c for c in shown[dashes:]]
    value = draw(st.sampled_from(["", "=1", "=a=b", ".x=1", ".x_y", "=--seed"]))
    return shown[:dashes] + "".join(letters) + value


@given(spellings())
def test_every_spelling_of_an_owned_flag_is_refused(argument: str) -> None:
    assert flags.refused(argument) is not None


@given(st.sampled_from([flag for flag in EVERY_OWNED if len(flag) == 2]), st.text(max_size=5))
def test_a_one_letter_flag_is_refused_with_its_value_attached(flag: str, value: str) -> None:
    assert flags.refused(flag + value) is not None


def test_the_refusal_names_the_field_to_set_instead() -> None:
    message = flags.refused("--max_model_len=8192")
    assert message is not None
    assert "set spec.engine.maxModelLen instead" in message


@given(st.text(max_size=30))
def test_no_text_makes_it_fail(argument: str) -> None:
    flags.refused(argument)
