"""The continuation matrix: kinds of requests, points of the cut, kinds of loss; and how to compare.

`KINDS` is shown in docs/reference/continuation.md, proven on the small engine in full
(tests/gateway/test_continuation_matrix.py) and on the real vLLM for a sample (tests/engine).
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spotinference.api.kinds import Json
from spotinference.core import continuation
from spotinference.core.chunks import Endpoint
from spotinference.core.continuation import Class
from spotinference.core.delivered import MAX_TOKENS

LENGTH = 24
SEED: Json = {"temperature": 0.9, "seed": 7}
USAGE: Json = {"stream_options": {"include_usage": True}}


def tool(name: str) -> Json:
    text = {"type": "string"}
    parameters = {"type": "object", "properties": {"text": text}, "required": ["text"]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS: Json = {"tools": [tool("look"), tool("take")]}
NAMED: Json = {"tool_choice": {"type": "function", "function": {"name": "take"}}}


def picture(red: int, green: int, blue: int) -> Json:
    """A message part: 28 x 28 pixels of one colour."""
    rows = b"".join(b"\0" + bytes((red, green, blue)) * 28 for _ in range(28))
    head = struct.pack(">IIBBBBB", 28, 28, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


SEEN: Json = {
    "messages": [
        {"role": "user", "content": [picture(9, 99, 199), {"type": "text", "text": "What is it?"}]}
    ]
}


def thought(prompt: str) -> Any:
    """Options of a kind that the thinker (tests/support/tiny) proves on the real vLLM."""
    messages = [{"role": "user", "content": prompt}]
    return {"setup": "thinking", "real": {"messages": messages, "max_tokens": 120}}


EMBEDS: Json = {"prompt": None, "prompt_embeds": "AAAA"}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request; `more` over a greedy stream of `LENGTH` tokens with usage."""

    name: str
    endpoint: Endpoint
    more: Json = field(default_factory=dict)
    stop: bool = False
    """`stop` is set to a text that occurs in the answer"""
    reasoning: bool = False
    """the engine runs a reasoning parser"""
    setup: str = "parsing"
    """of the real vLLM on which it is proven too (tests/engine)"""
    real: Json = field(default_factory=dict)
    """what the request says besides on the real vLLM"""

    def body(self, stop: str | None = None, *, real: bool = False) -> Json:
        prompt: Json = {"prompt": "once upon a time"}
        if self.endpoint is Endpoint.CHAT:
            prompt = {"messages": [{"role": "user", "content": "tell me a story"}]}
        body = {"model": "demo", "stream": True, "temperature": 0, "max_tokens": LENGTH}
        body |= prompt | USAGE | self.more | (self.real if real else {})
        if stop is not None:
            body["stop"] = [stop]
        return {key: value for key, value in body.items() if value is not None}

    @property
    def expected(self) -> Class:
        """The class that such a request gets on arrival."""
        return continuation.prepare(
            self.endpoint, self.body("x" if self.stop else None), seed=1, parsed=self.reasoning
        ).kind


def _chat(name: str, more: Json | None = None, **options: Any) -> Kind:
    return Kind(f"chat: {name}", Endpoint.CHAT, more or {}, **options)


def _completion(name: str, more: Json | None = None, **options: Any) -> Kind:
    return Kind(f"completion: {name}", Endpoint.COMPLETION, more or {}, **options)


KINDS: Sequence[Kind] = (
    _chat("greedy"),
    _chat("seeded", SEED),
    _chat("no usage asked for", {"stream_options": None}),
    _chat(
        "continuous_usage_stats",
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
    _chat("no max_tokens", {"max_tokens": None}, setup="seeing"),
    _chat("max_completion_tokens", {"max_tokens": None, "max_completion_tokens": LENGTH}),
    _chat("min_tokens", {"min_tokens": 20}),
    _chat("ignore_eos", {"ignore_eos": True}),
    _chat("stop across the cut", stop=True),
    _chat("stop across the cut, seeded", SEED, stop=True),
    _chat("stop, included in the output", {"include_stop_str_in_output": True}, stop=True),
    _chat("stop_token_ids", {"stop_token_ids": [11]}),
    _chat("logit_bias", {"logit_bias": {"300": 2.0}}),
    _chat("repetition_penalty", {"repetition_penalty": 1.3}),
    _chat("presence_penalty", {"presence_penalty": 0.7}),
    _chat("frequency_penalty", {"frequency_penalty": 0.7}),
    _chat("bad_words", {"bad_words": ["the"]}),
    _chat("response_format json_object", {"response_format": {"type": "json_object"}}),
    _chat("structured_outputs", {"structured_outputs": {"regex": "[a-z ]+"}}),
    _chat("logprobs", {"logprobs": True, "top_logprobs": 2}),
    _chat("logprobs, seeded", SEED | {"logprobs": True}),
    _chat("return_token_ids", {"return_token_ids": True}),
    _chat("n = 3", SEED | {"n": 3}),
    _chat("n = 2 with logprobs", SEED | {"n": 2, "logprobs": True}),
    _chat("n = 2 with stop", SEED | {"n": 2}, stop=True),
    _chat(
        "continue_final_message",
        {
            "messages": [{"role": "assistant", "content": "Once"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        },
    ),
    _chat("image part", SEEN, setup="seeing"),
    _chat("image part, seeded", SEEN | SEED, setup="seeing"),
    _chat("tools, auto", TOOLS),
    _chat("tools, auto, seeded", TOOLS | SEED),
    _chat("tools, named", TOOLS | NAMED),
    _chat("tools, required", TOOLS | {"tool_choice": "required"}),
    _chat("tools, one call at a time", TOOLS | {"parallel_tool_calls": False}),
    _chat("tools, n = 2", TOOLS | SEED | {"n": 2}),
    _chat("reasoning", reasoning=True, **thought("Think, then say it.")),
    _chat("reasoning, seeded", SEED, reasoning=True, **thought("Think, then say it.")),
    _chat("reasoning and tools", TOOLS, reasoning=True, **thought("Take the lamp.")),
    _chat("reasoning and tools, seeded", TOOLS | SEED, reasoning=True, **thought("Take the lamp.")),
    _chat("reasoning and two calls", TOOLS, reasoning=True, **thought("Look, then take.")),
    _chat(
        "reasoning with logprobs",
        {"logprobs": True},
        reasoning=True,
        **thought("Think, then say it."),
    ),
    _chat(
        "include_reasoning false",
        {"include_reasoning": False},
        reasoning=True,
        **thought("Think, then say it."),
    ),
    _completion("greedy"),
    _completion("seeded", SEED),
    _completion("token prompt", {"prompt": [280, 300, 320]}),
    _completion("stop across the cut", stop=True),
    _completion("logprobs", {"logprobs": 2}),
    _completion("echo", {"echo": True}),
    _completion("echo, seeded", SEED | {"echo": True}),
    _completion("echo with token ids", {"echo": True, "return_token_ids": True}),
    _completion("two prompts", {"prompt": ["once", "twice"]}),
    _completion("two prompts, n = 2", SEED | {"prompt": ["once", "twice"], "n": 2}),
    _completion("prompt_embeds", EMBEDS, setup="thinking"),
    _completion("prompt_embeds, seeded", EMBEDS | SEED, setup="thinking"),
    _completion("a field not known here", {"a_field_of_next_year": 1}),
)


@dataclass(frozen=True, slots=True)
class Limit:
    """A kind of request whose answer is not continued, and the test that proves it."""

    kind: str
    why: str
    test: str
    real: str
    """the test that proves it on the real vLLM"""


LIMITS: Sequence[Limit] = (
    Limit(
        "a tier with `interruption.continuation: off`",
        "So its owner wants it.",
        "gateway/test_failover.py"
        "::test_what_cannot_be_continued_ends_with_an_error_and_an_aborted_connection",
        "engine/test_continuation_limits.py::test_a_tier_whose_owner_wants_no_continuation_gets_none",
    ),
    Limit(
        "an answer for which only replicas of another model, image, tokenizer, chat template or "
        "parser are left",
        "What they would say is another answer.",
        "gateway/test_failover.py::test_an_answer_never_continues_on_another_revision_of_the_model",
        "engine/test_continuation_limits.py::test_an_answer_does_not_go_on_at_another_revision",
    ),
    Limit(
        "a replica that does not repeat what was delivered (`continuation_diverged`)",
        "Nothing may be appended to an answer that nobody gave.",
        "unit/core/test_continuation.py::test_another_token_or_another_text_is_never_appended",
        "engine/test_continuation_limits.py::test_a_replica_that_says_something_else_is_not_appended_to",
    ),
    Limit(
        "a replica whose context is shorter than the answer",
        "It refuses the prompt, and the client gets its words.",
        "gateway/test_failover.py::test_a_replica_with_a_shorter_context_cannot_carry_the_answer_on",
        "engine/test_continuation_limits.py::test_a_replica_whose_context_is_too_short_is_an_honest_end",
    ),
    Limit(
        f"an answer of more than {MAX_TOKENS:,} tokens",
        "Its ids are not kept: 8 MB, longer than any context.",
        "unit/core/test_continuation.py::test_an_answer_beyond_what_is_kept_is_not_continued",
        "engine/test_continuation_limits.py::test_an_answer_that_is_longer_than_is_kept_is_an_honest_end",
    ),
    Limit(
        "a response (`/v1/responses`) of more than 4 MiB of events, or with tools that the engine "
        "runs itself",
        "It is not kept; or what a tool did would be done twice.",
        "gateway/test_responses.py::test_what_cannot_be_continued_ends_with_an_error_event",
        "engine/test_continuation_limits.py::test_a_response_that_is_longer_than_is_kept_is_an_honest_end",
    ),
    Limit(
        "streamed beam search on completions",
        "The engine itself refuses it.",
        "engine/test_continuation_limits.py::test_beam_search_is_not_streamed_by_the_engine",
        "engine/test_continuation_limits.py::test_beam_search_is_not_streamed_by_the_engine",
    ),
)


@dataclass(slots=True)
class Heard:
    """What a client heard of one choice, however it was divided into chunks."""

    text: str = ""
    reasoning: str = ""
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    call_ids: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    roles: int = 0
    finishes: list[str] = field(default_factory=list)

    def same_as(self, other: Heard) -> bool:
        """Ids of tool calls are drawn anew in each run; there must be as many."""
        mine, theirs = (
            (h.text, h.reasoning, h.calls, h.logprobs, h.token_ids, h.roles, h.finishes)
            for h in (self, other)
        )
        return mine == theirs and len(self.call_ids) == len(other.call_ids)


def heard(chunks: Sequence[Json]) -> dict[int, Heard]:
    """Per choice."""
    found: dict[int, Heard] = {}
    for chunk in chunks:
        for choice in chunk.get("choices", ()):
            _hear(found.setdefault(choice["index"], Heard()), choice)
    return found


def _hear(what: Heard, choice: Json) -> None:
    delta = choice.get("delta") or {}
    what.text += choice.get("text") or delta.get("content") or ""
    what.reasoning += delta.get("reasoning") or ""
    what.roles += "role" in delta
    what.token_ids += choice.get("token_ids") or ()
    if choice.get("finish_reason"):
        what.finishes.append(choice["finish_reason"])
    for call in delta.get("tool_calls") or ():
        known = what.calls.setdefault(call["index"], {"name": "", "arguments": ""})
        for key in known:
            known[key] += (call.get("function") or {}).get(key) or ""
        if call.get("id"):
            what.call_ids.append(call["id"])
    logprobs = choice.get("logprobs") or {}
    what.logprobs += [entry["token"] for entry in logprobs.get("content") or ()]
    what.logprobs += list(
        zip(logprobs.get("tokens") or (), logprobs.get("text_offset") or (), strict=True)
    )
