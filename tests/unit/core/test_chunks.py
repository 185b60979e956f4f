"""What is hidden, what is sound: judged on bytes, without parsing."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st

from spotinference.api.kinds import Json
from spotinference.core import chunks
from spotinference.core.chunks import Endpoint, Identity

TEXT = st.text(max_size=40) | st.sampled_from(
    [
        '"token_ids":[1,2]',
        '\\"token_ids":[1]',
        '{"error"',
        '"finish_reason":"abort"',
        "data: [DONE]",
    ]
)


@given(TEXT, st.lists(st.integers(0, 200_000), max_size=8))
def test_hiding_token_ids_changes_nothing_else(text: str, ids: list[int]) -> None:
    chunk: Json = {
        "choices": [{"delta": {"content": text}, "token_ids": ids}],
        "prompt_token_ids": ids,
    }
    raw = chunks.encode(chunk)
    spaced = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    chunk["prompt_token_ids"] = None
    chunk["choices"][0]["token_ids"] = None
    for several in (raw, spaced, raw + raw, raw + spaced):
        shown = chunks.hide_token_ids(several).strip().split(b"\n\n")
        assert [json.loads(event[len(b"data: ") :]) for event in shown] == [chunk] * len(shown)


@given(st.lists(TEXT, min_size=1, max_size=4))
def test_text_never_makes_a_good_chunk_look_bad(texts: list[str]) -> None:
    raw = b"".join(chunks.encode({"choices": [{"text": text}]}) for text in texts)
    assert chunks.sound(raw)


PIECES = [
    b'"finish_reason":null', b'"finish_reason":"stop"', b'"finish_reason":"abort"', b'"error"', b"\n\n",
    b'"finish_reason" : "error"', b'"choices":[]', b'data: {"id":"x"}', b"\xff", b"}", b'{"error"', b",",
]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 120), st.sampled_from(PIECES)), max_size=4))
@example([(0, b'data: {"id":"x"}'), (21, b'{"error"')])
def test_what_is_passed_on_unparsed_is_sound(edits: list[tuple[int, bytes]]) -> None:
    """The short look at the chunk that nearly all are takes nothing that the long one refuses, but
    what no client can read either: no JSON, in which the long one happened on a word.
    """
    raw = (
        b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    )
    assert chunks.ordinary(raw)
    for at, piece in edits:
        raw = raw[:at] + piece + raw[at:]
    readable = chunks.decode(raw.removeprefix(b"data: ")) is not None
    assert not chunks.ordinary(raw) or chunks.sound(raw) or not readable


def test_errors_aborts_and_rubbish_are_looked_at_closer() -> None:
    good = chunks.encode({"choices": []})
    for bad in (
        b'data: {"error":{"message":"x"}}\n\n',
        b'data: {"choices":[{"finish_reason":"abort"}]}\n\n',
        b"data: [DONE]\n\n",
        b'data: {"id": broken\n\n',
        b'data: {"text":"\xff\xfe"}\n\n',
        b": keep-alive\n\n",
    ):
        assert not chunks.sound(bad)
        assert not chunks.sound(good + bad)


def test_a_mapped_chunk_has_the_engines_own_order_of_fields() -> None:
    who = Identity("chatcmpl-1", 5, "m")
    choice = chunks.text_choice(
        Endpoint.CHAT, {"finish_reason": "stop", "stop_reason": None}, text="a", token_ids=(1,)
    )
    assert chunks.encode(chunks.envelope(Endpoint.CHAT, who, [choice], {})) == (
        b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"m",'
        b'"choices":[{"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":"stop",'
        b'"stop_reason":null,"token_ids":[1]}]}\n\n'
    )


def test_the_cached_tokens_of_a_continuation_are_no_more_than_the_whole_answers_prompt() -> None:
    usage = chunks.usage(100, 20) | {"prompt_tokens_details": {"cached_tokens": 96}}
    shifted = chunks.shifted_usage(usage, 90)
    assert (shifted["prompt_tokens"], shifted["completion_tokens"]) == (10, 110)
    assert shifted["prompt_tokens_details"] == {"cached_tokens": 10}
    assert chunks.shifted_usage(usage, 0) == usage


def test_nonsense_for_usage_does_not_break_a_continuation() -> None:
    told = {
        "prompt_tokens": "many",
        "completion_tokens": [],
        "prompt_tokens_details": {"cached_tokens": {}},
    }
    shifted = chunks.shifted_usage(told, 5)
    assert (shifted["prompt_tokens"], shifted["completion_tokens"]) == (0, 5)
