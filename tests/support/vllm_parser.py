"""Runs under the engine's Python: which flag of `vllm serve` does each word stand for?

    ENGINE_PYTHON vllm_parser.py < words.json > answers.json

An answer is the list of the flag's spellings; null when vLLM would refuse the word or take it for a
value. With `{"flags": true}` on stdin: every spelling of every flag.
"""

import argparse
import contextlib
import io
import json
import sys
from typing import Any, NoReturn

from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser


class Captured(Exception):
    def __init__(self, words: list[str]) -> None:
        super().__init__()
        self.words = words


def capture(_: object, args: Any = None, _namespace: object = None) -> NoReturn:
    raise Captured(list(args))


def main() -> None:
    asked = json.load(sys.stdin)
    with contextlib.redirect_stdout(io.StringIO()):
        parser = make_arg_parser(FlexibleArgumentParser())
    if isinstance(asked, dict):
        answer = sorted(parser._option_string_actions)
    else:
        argparse.ArgumentParser.parse_args = capture  # type: ignore[assignment,method-assign]
        argparse.ArgumentParser.parse_known_args = capture  # type: ignore[assignment,method-assign]
        answer = [stands_for(parser, word) for word in asked]
    json.dump(answer, sys.stdout)


def stands_for(parser: Any, word: str) -> list[str] | None:
    try:
        parser.parse_args(["model", word, "1"])
    except Captured as caught:
        normalised = next((w for w in caught.words if w.startswith("-")), None)
    except (SystemExit, ValueError):
        return None
    if normalised is None:
        return None
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            found = parser._parse_optional(normalised)
    except (SystemExit, ValueError):
        return None
    while isinstance(found, list):
        if len(found) != 1:
            return None
        found = found[0]
    if found is None or found[0] is None:
        return None
    return list(found[0].option_strings)


main()
