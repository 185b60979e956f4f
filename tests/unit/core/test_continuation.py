"""Classes of requests, and the request that carries an answer on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference.api.kinds import Json
from spotinference.core import chunks, continuation
from spotinference.core.chunks import Endpoint, Identity
from spotinference.core.continuation import Class, Ending, Next, Prepared, Refusal
from spotinference.core.delivered import Delivered
from spotinference.core.splice import Diverged, EngineFailed, Splice

WHO = Identity("chatcmpl-1", 5, "m")
CHAT: Json = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
    "temperature": 0,
}


def prepare(endpoint: Endpoint = Endpoint.CHAT, **more: Any) -> Prepared:
    body = CHAT | more if endpoint is Endpoint.CHAT else {
        "model": "m", "prompt": "hi", "stream": True, "temperature": 0
    } | more  # fmt: skip
    return continuation.prepare(endpoint, body, seed=99)


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({}, Class.TOKEN),
        ({"stop": ["x"]}, Class.TOKEN),
        ({"repetition_penalty": 1.2}, Class.TOKEN),
        ({"response_format": {"type": "text"}}, Class.TOKEN),
        ({"tools": [], "presence_penalty": 0}, Class.TOKEN),
        ({"temperature": 0.7}, Class.REPLAY),
        ({"temperature": None}, Class.REPLAY),
        ({"presence_penalty": 0.5}, Class.REPLAY),
        ({"frequency_penalty": -0.5}, Class.REPLAY),
        ({"logprobs": True}, Class.REPLAY),
        ({"response_format": {"type": "json_object"}}, Class.REPLAY),
        ({"tools": [{"type": "function"}]}, Class.REPLAY),
        ({"bad_words": ["no"]}, Class.REPLAY),
        ({"a_field_of_next_year": 1}, Class.REPLAY),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, Class.REPLAY),
        ({"n": 2, "temperature": 1}, Class.REFUSED),
        ({"include_reasoning": False}, Class.REFUSED),
        ({"stream": False}, Class.RESTART),
    ],
)
def test_each_chat_request_has_the_class_that_the_engine_allows(more: Json, kind: Class) -> None:
    assert prepare(**more).kind is kind


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({}, Class.TOKEN),
        ({"prompt": [1, 2, 3]}, Class.TOKEN),
        ({"prompt": ["a"]}, Class.TOKEN),
        ({"prompt": ["a", "b"]}, Class.REFUSED),
        ({"echo": True}, Class.REFUSED),
        ({"suffix": "x"}, Class.REPLAY),
    ],
)
def test_each_completion_has_its_class(more: Json, kind: Class) -> None:
    assert prepare(Endpoint.COMPLETION, **more).kind is kind


def test_a_random_request_is_given_a_seed_and_a_seeded_one_keeps_its_own() -> None:
    assert prepare(temperature=1).body["seed"] == 99
    assert prepare(temperature=1, seed=3).body["seed"] == 3
    assert "seed" not in prepare().body


def test_a_reasoning_parser_or_a_switched_off_continuation_changes_the_class() -> None:
    assert continuation.prepare(Endpoint.CHAT, CHAT, seed=1, parsed=True).kind is Class.REPLAY
    off = continuation.prepare(Endpoint.CHAT, CHAT, seed=1, enabled=False)
    assert off.kind is Class.REFUSED
    assert "return_token_ids" not in off.body


# --- what comes after a loss ------------------------------------------------------------------


def role(ids: list[int]) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    chunk = chunks.envelope(Endpoint.CHAT, WHO, [choice], {}) | {"prompt_token_ids": ids}
    return chunks.encode(chunk)


def piece(text: str, *ids: int, finish: str | None = None) -> bytes:
    choice = chunks.text_choice(Endpoint.CHAT, {"finish_reason": finish}, text=text, token_ids=ids)
    return chunks.encode(chunks.envelope(Endpoint.CHAT, WHO, [choice], {}))


def delivered(*raw: bytes) -> Delivered:
    what = Delivered(Endpoint.CHAT)
    for part in raw:
        what.record(part)
    return what


def planned(prepared: Prepared, what: Delivered, **options: Any) -> Next:
    step = continuation.plan(prepared, what, **options)
    assert isinstance(step, Next), step
    return step


def test_a_greedy_answer_continues_behind_its_last_token() -> None:
    had = delivered(role([1, 2]), piece("a", 10), piece("b", 11))
    step = planned(prepare(max_tokens=9, min_tokens=4, stop=None), had)
    assert (step.kind, step.path) == (Class.TOKEN, "/v1/completions")
    assert step.body["prompt"] == [1, 2, 10, 11]
    assert step.body["max_tokens"] == 7
    assert step.body["min_tokens"] == 2
    assert step.expect_ids == ()
    assert not step.needs_max_tokens


def test_without_a_limit_the_context_that_is_left_is_the_limit() -> None:
    step = planned(prepare(), delivered(role([1, 2]), piece("a", 10)))
    assert step.needs_max_tokens
    assert continuation.with_max_tokens(step, 100)["max_tokens"] == 97


def test_a_cut_within_a_character_starts_before_it_and_drops_what_is_there() -> None:
    """A detokenizer that starts within a character would emit the prompt, or lose the character."""
    had = delivered(role([1]), piece("a", 10), piece("", 11))
    step = planned(prepare(max_tokens=9), had)
    assert step.body["prompt"] == [1, 10]
    assert step.expect_ids == (11,)
    assert step.expect_text == ""
    splice = Splice(prepare(), had, step)
    assert splice.feed(completion("", 11)) == b""
    assert b'"content":"\xc3\xa9"' in splice.feed(completion("é", 12))


def test_a_chunk_of_several_tokens_is_no_clean_point() -> None:
    had = delivered(role([1]), piece("a", 10), piece("bc", 11, 12))
    step = planned(prepare(max_tokens=9), had)
    assert step.body["prompt"] == [1, 10]
    assert (step.expect_ids, step.expect_text) == ((11, 12), "bc")


def test_a_stop_string_across_the_cut_is_still_found() -> None:
    """The engine holds back three characters of `stop`; the new one must hold back the same."""
    had = delivered(role([1]), piece("abcdef", 10), piece("g", 11), piece("h", 12), piece("i", 13))
    step = planned(prepare(max_tokens=9, stop=["wxyz"]), had)
    # Three delivered characters must come again, so that three are held back at the cut.
    assert step.body["prompt"] == [1, 10]
    assert step.expect_ids == (11, 12, 13)
    assert step.expect_text == ""


def test_what_comes_again_may_come_in_other_chunks() -> None:
    had = delivered(role([1]), piece("a", 10), piece("b", 11), piece("c", 12))
    prepared = prepare(temperature=1)
    splice = Splice(prepared, had, planned(prepared, had))
    assert splice.feed(role([1])[6:-2]) == b""
    assert splice.feed(piece("ab", 10, 11)[6:-2]) == b""
    out = splice.feed(piece("cde", 12, 13, 14)[6:-2])
    assert b'"content":"de"' in out
    assert list(had.token_ids) == [10, 11, 12, 13, 14]


def test_another_token_or_another_text_is_never_appended() -> None:
    had = delivered(role([1]), piece("a", 10), piece("b", 11))
    prepared = prepare(temperature=1)
    with pytest.raises(Diverged):
        Splice(prepared, had, planned(prepared, had)).feed(piece("x", 77)[6:-2])
    with pytest.raises(Diverged):
        Splice(prepared, had, planned(prepared, had)).feed(piece("xy", 10, 11)[6:-2])
    with pytest.raises(Diverged):
        Splice(prepared, had, planned(prepared, had)).feed(piece("a", 10, finish="stop")[6:-2])


def test_done_without_a_finish_reason_ends_nothing() -> None:
    had = delivered(role([1]), piece("a", 10))
    prepared = prepare()
    with pytest.raises(EngineFailed):
        Splice(prepared, had, planned(prepared, had)).feed(b"[DONE]")


def test_a_loss_after_the_finish_only_needs_usage_and_done() -> None:
    had = delivered(role([1, 2, 3]), piece("a", 10), piece("b", 11, finish="stop"))
    step = continuation.plan(prepare(stream_options={"include_usage": True}), had)
    assert isinstance(step, Ending)
    assert b'"prompt_tokens":3,"total_tokens":5,"completion_tokens":2' in step.events
    assert step.events.endswith(chunks.DONE)
    assert continuation.plan(prepare(), had) == Ending(chunks.DONE)


def test_nothing_but_a_role_is_nothing_delivered() -> None:
    step = planned(prepare(n=2, temperature=1), delivered(role([1])))
    assert step.kind is Class.RESTART


def test_what_cannot_be_continued_says_why() -> None:
    had = delivered(role([1]), piece("a", 10))
    step = continuation.plan(prepare(n=2, temperature=1), had)
    assert isinstance(step, Refusal)
    assert "n > 1" in step.reason


def test_a_delta_that_is_more_than_text_is_replayed() -> None:
    tool = {"index": 0, "delta": {"tool_calls": [{"index": 0}]}, "token_ids": [10]}
    had = delivered(role([1]), chunks.encode(chunks.envelope(Endpoint.CHAT, WHO, [tool], {})))
    assert planned(prepare(), had).kind is Class.REPLAY


def completion(text: str, *ids: int, finish: str | None = None) -> bytes:
    choice = chunks.text_choice(
        Endpoint.COMPLETION, {"finish_reason": finish}, text=text, token_ids=ids
    )
    other = Identity("cmpl-9", 6, "m")
    return chunks.encode(chunks.envelope(Endpoint.COMPLETION, other, [choice], {}))[6:-2]


@given(
    st.lists(st.tuples(st.text(max_size=3), st.integers(1, 3)), min_size=1, max_size=30),
    st.data(),
)
def test_wherever_it_is_cut_and_however_it_comes_again_the_text_is_the_same(
    tokens: list[tuple[str, int]], data: st.DataObject
) -> None:
    """Cut after any chunk, regenerate in any chunking: the same text and ids, once."""
    texts = [text for text, _ in tokens]
    prepared = prepare(max_tokens=1000)
    cut = data.draw(st.integers(0, len(texts)))
    had = delivered(role([1]), *(piece(text, index) for index, text in enumerate(texts[:cut])))
    step = planned(prepared, had)
    at = step.base_tokens
    splice = Splice(prepared, had, step)
    out = [had.text_from(0)]
    before = len(had.text)
    while at < len(texts):
        size = data.draw(st.integers(1, 4))
        ids = range(at, min(at + size, len(texts)))
        text = "".join(texts[at : at + size])
        at += size
        chunk = completion(text, *ids) if step.kind is Class.TOKEN else piece(text, *ids)[6:-2]
        splice.feed(chunk)
    out += had.text[before:]
    assert "".join(out) == "".join(texts)
    assert list(had.token_ids) == list(range(len(texts)))
