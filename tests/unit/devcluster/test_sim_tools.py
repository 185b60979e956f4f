"""The small engine without a tool parser refuses tools in vLLM's words (seen on vLLM 0.32)."""

from __future__ import annotations

import pytest

from spotinference.devcluster.simengine.options import SimOptions
from spotinference.devcluster.simengine.protocol import Refused, parse_generation

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("auto", '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser'),
        ("required", 'tool_choice="required" requires --tool-call-parser to be set'),
        (
            {"type": "function", "function": {"name": "f"}},
            'tool_choice=function "f" requires --tool-call-parser to be set',
        ),
    ],
)
def test_without_a_parser_tools_are_refused(choice: object, words: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "tools": [TOOL], "tool_choice": choice}
    with pytest.raises(Refused, match="tool") as refused:
        parse_generation(body, SimOptions(), chat=True)
    assert words in refused.value.message
    assert parse_generation(body, SimOptions(tool_parser=True), chat=True).shape.tools == ("f",)
