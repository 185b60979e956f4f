"""The flags we own, held against vLLM's own parser: no spelling of one may slip through."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spotinference.api.flags import OWNED, refused
from spotinference.devcluster import engine_install
from tests.support import engine as engine_support

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

SCRIPT = Path(engine_support.__file__).with_name("vllm_parser.py")
OWNED_FLAGS = tuple(flag for owned in OWNED for flag in owned.flags)
NOT_IN_THIS_BUILD = {"--version", "--headless", "--grpc-port"}
"""Flags of the subcommand or of other builds, owned all the same."""

Ask = Callable[[object], Any]


@pytest.fixture(scope="module")
def ask() -> Ask:
    python = engine_install.engine_python(engine_install.install(print))

    def run(question: object) -> Any:
        done = subprocess.run(
            [str(python), str(SCRIPT)],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def _spellings(flag: str) -> set[str]:
    """Every prefix of a flag, with `_` for `-`, and with a value attached."""
    prefixes = {flag[:end] for end in range(3, len(flag) + 1)} if flag.startswith("--") else {flag}
    words = prefixes | {"--" + p[2:].replace("-", "_") for p in prefixes if p.startswith("--")}
    return words | {f"{word}=x" for word in words}


def test_no_spelling_that_vllm_takes_for_an_owned_flag_is_accepted(ask: Ask) -> None:
    words = sorted({word for flag in OWNED_FLAGS for word in _spellings(flag)})
    answers = ask(words)
    owned = set(OWNED_FLAGS)
    taken = [word for word, flags in zip(words, answers, strict=True) if owned & set(flags or ())]
    assert len(taken) > len(OWNED_FLAGS), "vLLM's parser takes prefixes and underscores"
    assert [word for word in taken if refused(word) is None] == []


def test_every_owned_flag_exists_in_vllm(ask: Ask) -> None:
    known = set(ask({"flags": True}))
    assert [f for f in OWNED_FLAGS if f not in known | NOT_IN_THIS_BUILD] == []


def test_ordinary_flags_of_vllm_stay_free(ask: Ask) -> None:
    free = ["--enforce-eager", "--swap-space", "--block-size", "--seed", "--generation-config"]
    known = set(ask({"flags": True}))
    assert [refused(flag) for flag in free if flag in known] == [None] * len(
        [flag for flag in free if flag in known]
    )
