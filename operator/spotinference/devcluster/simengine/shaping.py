"""Reasoning and tool calls out of plain text, as an engine with parsers would stream them.

Where a section ends is decided by the number of characters before it, never by chunks, so that
the same tokens give the same sections however they are merged:

    reasoning (with a reasoning parser) | content (unless a tool is forced) | tool calls

Arguments are a JSON object around the text; each call but the last gets `CALL_CHARS` of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from spotinference.devcluster.simengine import tokenizer

REASONING_CHARS = 40
CONTENT_CHARS = 40
CALL_CHARS = 60
MAX_CALLS = 2
_HEAD = '{"text": "'
_TAIL = '"}'


@dataclass(frozen=True, slots=True)
class Shape:
    """Which sections the answers of one request have."""

    reasoning: bool = False
    tools: tuple[str, ...] = ()
    """names that may be called; empty: no tool calls"""
    forced: bool = False
    """named or required: nothing but calls"""
    named: bool = False
    """the finish_reason then stays "stop", as OpenAI has it"""
    hide_reasoning: bool = False
    parallel: bool = True

    @property
    def shaped(self) -> bool:
        return self.reasoning or bool(self.tools) or self.hide_reasoning


class Shaper:
    """One choice's text, fed in pieces; deltas out."""

    __slots__ = ("_at", "_call_chars", "_calls", "_shape")

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._at = 0
        self._calls = 0
        self._call_chars = 0

    def feed(self, text: str, finish: str | None) -> dict[str, object]:
        """The delta of this piece; empty when nothing of it is shown."""
        delta: dict[str, object] = {}
        calls: list[dict[str, object]] = []
        reasoning_end = REASONING_CHARS if self._shape.reasoning else 0
        content_end: float = reasoning_end
        if not self._shape.forced:
            content_end += CONTENT_CHARS if self._shape.tools else float("inf")
        while text:
            if self._at < reasoning_end:
                piece, text = self._take(text, reasoning_end)
                if not self._shape.hide_reasoning:
                    delta["reasoning"] = piece
            elif self._at < content_end:
                piece, text = self._take(text, content_end)
                delta["content"] = piece
            else:
                text = self._call(text, calls)
        if finish == "stop" and self._calls:
            calls.append(_arguments(self._calls - 1, _TAIL))
        if calls:
            delta["tool_calls"] = calls
        return delta

    def reasoning_tokens(self, tokens: Sequence[int]) -> int:
        """How many of the tokens that come next begin within the reasoning."""
        at, count = self._at, 0
        while self._shape.reasoning and at < REASONING_CHARS and count < len(tokens):
            at += len(tokenizer.decode((tokens[count],)))
            count += 1
        return count

    def finish(self, reason: str | None) -> str | None:
        """The finish_reason as the client gets it."""
        called = self._calls and not self._shape.named
        return "tool_calls" if reason == "stop" and called else reason

    def _take(self, text: str, end: float) -> tuple[str, str]:
        size = int(min(len(text), end - self._at))
        self._at += size
        return text[:size], text[size:]

    def _call(self, text: str, calls: list[dict[str, object]]) -> str:
        """Some of the text as arguments; the rest."""
        most = MAX_CALLS if self._shape.parallel else 1
        if self._calls == 0 or (self._call_chars >= CALL_CHARS and self._calls < most):
            if self._calls:
                calls.append(_arguments(self._calls - 1, _TAIL))
            name = self._shape.tools[self._calls % len(self._shape.tools)]
            calls.append(
                {
                    "id": f"chatcmpl-tool-{secrets.token_hex(8)}",
                    "type": "function",
                    "index": self._calls,
                    "function": {"name": name, "arguments": _HEAD},
                }
            )
            self._calls += 1
            self._call_chars = 0
        last = self._calls == most
        size = len(text) if last else min(len(text), CALL_CHARS - self._call_chars)
        self._call_chars += size
        self._at += size
        calls.append(_arguments(self._calls - 1, orjson.dumps(text[:size]).decode()[1:-1]))
        return text[size:]


def _arguments(index: int, text: str) -> dict[str, object]:
    return {"index": index, "function": {"arguments": text}}


def message(shape: Shape, text: str, finish: str | None) -> tuple[dict[str, object], str | None]:
    """Fields of a whole message, and its finish_reason."""
    shaper = Shaper(shape)
    delta = shaper.feed(text, finish)
    whole: dict[str, object] = {
        "content": delta.get("content"), "reasoning": delta.get("reasoning"),
    }  # fmt: skip
    calls: dict[object, dict[str, object]] = {}
    pieces = delta.get("tool_calls")
    for piece in pieces if isinstance(pieces, list) else ():
        known = calls.get(piece["index"])
        if known is None:
            calls[piece["index"]] = {
                "id": piece["id"], "type": "function", "function": dict(piece["function"]),
            }  # fmt: skip
        else:
            function = known["function"]
            assert isinstance(function, dict)
            function["arguments"] += piece["function"]["arguments"]
    if calls:
        whole["tool_calls"] = list(calls.values())
        if shape.forced:
            whole["content"] = ""
    return whole, shaper.finish(finish)
