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
from spotinference.core.deltas import IDS, TEXT
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
        ({"logprobs": False, "top_logprobs": 0}, Class.TOKEN),
        ({"response_format": {"type": "json_object"}}, Class.REPLAY),
        ({"tools": [{"type": "function"}]}, Class.REPLAY),
        ({"bad_words": ["no"]}, Class.REPLAY),
        ({"a_field_of_next_year": 1}, Class.REPLAY),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, Class.REPLAY),
        ({"n": 2, "temperature": 1}, Class.REPLAY),
        ({"include_reasoning": False}, Class.TOKEN),
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
        ({"prompt": ["a", "b"]}, Class.REPLAY),
        ({"prompt": [[1], [2]]}, Class.REPLAY),
        ({"echo": True}, Class.REPLAY),
        ({"prompt": None, "prompt_embeds": "AAAA"}, Class.REPLAY),
        ({"suffix": "x"}, Class.REPLAY),
        ({"logprobs": None}, Class.TOKEN),
        ({"logprobs": 0}, Class.REPLAY),
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
    assert step.expect == {0: {}}
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
    assert step.expect == {0: {IDS: (11,)}}
    splice = Splice(prepare(), had, step)
    assert splice.feed(completion("", 11)) == b""
    assert b'"content":"\xc3\xa9"' in splice.feed(completion("é", 12))


def test_a_chunk_of_several_tokens_is_no_clean_point() -> None:
    had = delivered(role([1]), piece("a", 10), piece("bc", 11, 12))
    step = planned(prepare(max_tokens=9), had)
    assert step.body["prompt"] == [1, 10]
    assert step.expect == {0: {IDS: (11, 12), TEXT: "bc"}}


def test_a_stop_string_across_the_cut_is_still_found() -> None:
    """The engine holds back three characters of `stop`; the new one must hold back the same."""
    had = delivered(role([1]), piece("abcdef", 10), piece("g", 11), piece("h", 12), piece("i", 13))
    step = planned(prepare(max_tokens=9, stop=["wxyz"]), had)
    # Three delivered characters must come again, so that three are held back at the cut.
    assert step.body["prompt"] == [1, 10]
    assert step.expect == {0: {IDS: (11, 12, 13)}}


def test_what_comes_again_may_come_in_other_chunks() -> None:
    had = delivered(role([1]), piece("a", 10), piece("b", 11), piece("c", 12))
    prepared = prepare(temperature=1)
    splice = Splice(prepared, had, planned(prepared, had))
    assert splice.feed(role([1])[6:-2]) == b""
    assert splice.feed(piece("ab", 10, 11)[6:-2]) == b""
    out = splice.feed(piece("cde", 12, 13, 14)[6:-2])
    assert b'"content":"de"' in out
    assert list(had.only.token_ids) == [10, 11, 12, 13, 14]


def test_another_token_or_another_text_is_never_appended() -> None:
    had = delivered(role([1]), piece("a", 10), piece("b", 11))
    prepared = prepare(temperature=1)
    with pytest.raises(Diverged):
        Splice(prepared, had, planned(prepared, had)).feed(piece("x", 77)[6:-2])
    with pytest.raises(Diverged):
        Splice(prepared, had, planned(prepared, had)).feed(piece("xy", 10, 11)[6:-2])
    with pytest.raises(Diverged):
        Splice(prepared, had, planned(prepared, had)).feed(piece("a", 10, finish="stop")[6:-2])


def test_an_answer_beyond_what_is_kept_is_not_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuation, "MAX_TOKENS", 2)
    had = delivered(role([1]), piece("a", 10), piece("b", 11))
    assert isinstance(continuation.plan(prepare(), had), Next)
    had.record(piece("c", 12))
    assert isinstance(continuation.plan(prepare(), had), Refusal)


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


def test_how_many_tokens_were_reasoning_only_an_engine_can_say() -> None:
    body = CHAT | {"stream_options": {"include_usage": True}}
    prepared = continuation.prepare(Endpoint.CHAT, body, seed=99, parsed=True)
    had = delivered(role([1, 2, 3]), piece("a", 10, finish="stop"))
    assert planned(prepared, had).kind is Class.REPLAY
    unasked = continuation.prepare(Endpoint.CHAT, CHAT, seed=99, parsed=True)
    assert continuation.plan(unasked, had) == Ending(chunks.DONE)


def test_nothing_but_a_role_is_nothing_delivered() -> None:
    step = planned(prepare(n=2, temperature=1), delivered(role([1])))
    assert step.kind is Class.RESTART


def test_what_cannot_be_continued_says_why() -> None:
    had = delivered(role([1]), piece("a", 10))
    off = continuation.prepare(Endpoint.CHAT, CHAT, seed=1, enabled=False)
    step = continuation.plan(off, had)
    assert isinstance(step, Refusal)
    assert "spec.interruption.continuation" in step.reason


def test_a_delta_that_is_more_than_text_is_replayed() -> None:
    call = {"index": 0, "id": "x", "type": "function", "function": {"name": "look"}}
    tool = {"index": 0, "delta": {"tool_calls": [call]}, "token_ids": [10]}
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
    out = [had.only.text_from(0)]
    before = len(had.only.text)
    while at < len(texts):
        size = data.draw(st.integers(1, 4))
        ids = range(at, min(at + size, len(texts)))
        text = "".join(texts[at : at + size])
        at += size
        chunk = completion(text, *ids) if step.kind is Class.TOKEN else piece(text, *ids)[6:-2]
        splice.feed(chunk)
    out += had.only.text[before:]
    assert "".join(out) == "".join(texts)
    assert list(had.only.token_ids) == list(range(len(texts)))


# --- several channels and choices ---------------------------------------------------------------


def delta(index: int = 0, *ids: int, finish: str | None = None, **fields: Any) -> bytes:
    choice = {"index": index, "delta": fields, "finish_reason": finish, "token_ids": list(ids)}
    return chunks.encode(chunks.envelope(Endpoint.CHAT, WHO, [choice], {}))


def call(index: int, name: str = "", arguments: str = "", id_: str = "") -> Json:
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v}
    named = {"id": id_, "type": "function"} if id_ else {}
    return {"index": index, **named, "function": function}


def feed(splice: Splice, raw: bytes) -> Json | None:
    out = splice.feed(raw[6:-2])
    return chunks.decode(out[6:-2])["choices"][0] if out else None  # type: ignore[index]


def test_each_choice_is_verified_on_its_own_and_goes_on_when_it_is_through() -> None:
    prepared = prepare(n=2, temperature=1, return_token_ids=True)
    had = delivered(
        role([1]),
        delta(0, 10, content="a"),
        delta(1, 20, content="x"),
        delta(1, 21, content="y", finish="stop"),
    )
    splice = Splice(prepared, had, planned(prepared, had))
    assert feed(splice, delta(1, 20, 21, content="xy", finish="stop")) is None
    assert feed(splice, delta(0, 10, 11, content="ab")) == {
        "index": 0, "delta": {"content": "b"}, "finish_reason": None, "token_ids": [11],
    }  # fmt: skip
    assert splice.verified
    other = Splice(prepared, had, planned(prepared, had))
    with pytest.raises(Diverged, match="choice 1 ended for another reason"):
        feed(other, delta(1, 20, 21, content="xy", finish="length"))
    other = Splice(prepared, had, planned(prepared, had))
    with pytest.raises(Diverged, match="choice 1 goes on"):
        feed(other, delta(1, 20, 21, 22, content="xyz"))


def test_a_chunk_that_straddles_the_cut_is_cut_in_each_channel() -> None:
    """Merged tokens: the end of the reasoning, a tool call's head and its first arguments."""
    prepared = prepare(tools=[{"type": "function"}], return_token_ids=True)
    had = delivered(
        role([1]),
        delta(0, 10, reasoning="think"),
        delta(0, 11, tool_calls=[call(0, "look", id_="call-a")]),
        delta(0, 12, tool_calls=[call(0, arguments='{"at')]),
    )
    splice = Splice(prepared, had, planned(prepared, had))
    whole = delta(
        0, 10, 11, 12, 13, 14,
        reasoning="thinking",
        tool_calls=[
            call(0, "look", id_="call-b"), call(0, arguments='{"at": 1}'),
            call(1, "take", id_="call-c"),
        ],
    )  # fmt: skip
    got = feed(splice, whole)
    assert got is not None
    assert got["token_ids"] == [13, 14]
    assert got["delta"] == {
        "reasoning": "ing",
        "tool_calls": [call(0, arguments='": 1}'), call(1, "take", id_="call-c")],
    }


def test_another_reasoning_or_tool_call_is_never_appended() -> None:
    prepared = prepare(tools=[{"type": "function"}])
    had = delivered(
        role([1]), delta(0, reasoning="think"), delta(0, tool_calls=[call(0, "look", '{"a')])
    )
    for other in (
        delta(0, reasoning="dream"),
        delta(0, tool_calls=[call(0, "loot")]),
        delta(0, tool_calls=[call(0, "look", '{"b')]),
    ):
        with pytest.raises(Diverged):
            feed(Splice(prepared, had, planned(prepared, had)), other)


def test_without_token_ids_the_text_is_what_is_verified() -> None:
    prepared = prepare(Endpoint.COMPLETION, echo=True)
    assert "return_token_ids" not in prepared.body
    what = Delivered(Endpoint.COMPLETION)
    what.record(b"data: " + text_only("hi there") + b"\n\n")
    splice = Splice(prepared, what, planned(prepared, what))
    assert splice.feed(text_only("hi the")) == b""
    assert b'"text":"fore"' in splice.feed(text_only("refore"))
    with pytest.raises(Diverged):
        Splice(prepared, what, planned(prepared, what)).feed(text_only("no"))


def text_only(text: str) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None}
    return chunks.encode(chunks.envelope(Endpoint.COMPLETION, WHO, [choice], {}))[6:-2]


def test_another_chat_template_or_tokenizer_is_refused_by_the_prompts_ids() -> None:
    prepared = prepare(temperature=1)
    had = delivered(role([1, 2, 3]), piece("a", 10))
    with pytest.raises(Diverged, match="the prompt has other tokens"):
        Splice(prepared, had, planned(prepared, had)).feed(role([1, 2, 4])[6:-2])


def test_usage_that_only_the_gateway_asked_for_is_kept_and_not_shown() -> None:
    usage = chunks.encode(chunks.envelope(Endpoint.CHAT, WHO, [], {"usage": chunks.usage(3, 2)}))
    for asked in (False, True):
        options: Json = {"stream_options": {"include_usage": True}} if asked else {}
        prepared = prepare(**options)
        assert prepared.body["stream_options"] == {"include_usage": True}
        had = delivered(role([1, 2, 3]), piece("a", 10))
        splice = Splice(prepared, had, planned(prepared, had))
        splice.feed(completion("b", 11, finish="stop"))
        assert bool(splice.feed(usage[6:-2])) is asked
        assert had.usage is not None


def test_the_last_of_several_choices_needs_usage_and_done_only() -> None:
    prepared = prepare(n=2, temperature=1, stream_options={"include_usage": True})
    had = delivered(
        role([1, 2, 3]),
        delta(0, 10, content="a", finish="stop"),
        delta(1, 20, 21, content="x", finish="length"),
    )
    step = continuation.plan(prepared, had)
    assert isinstance(step, Ending)
    assert b'"prompt_tokens":3,"total_tokens":6,"completion_tokens":3' in step.events


def test_without_token_ids_a_missing_usage_is_asked_for_by_a_replay() -> None:
    prepared = prepare(Endpoint.COMPLETION, echo=True, stream_options={"include_usage": True})
    what = Delivered(Endpoint.COMPLETION)
    choice = {"index": 0, "text": "hi", "finish_reason": "stop"}
    what.record(chunks.encode(chunks.envelope(Endpoint.COMPLETION, WHO, [choice], {})))
    step = planned(prepared, what)
    assert step.kind is Class.REPLAY
    splice = Splice(prepared, what, step)
    again = chunks.encode(chunks.envelope(Endpoint.COMPLETION, WHO, [choice], {}))
    assert splice.feed(again[6:-2]) == b""
    usage = {"usage": chunks.usage(1, 1)}
    tail = chunks.encode(chunks.envelope(Endpoint.COMPLETION, WHO, [], usage))
    assert b'"usage"' in splice.feed(tail[6:-2])
    assert splice.feed(chunks.DONE_DATA) == chunks.DONE


WORDS = st.text(alphabet="abc", max_size=4)
TOKEN = st.tuples(st.integers(0, 1), st.sampled_from(["content", "reasoning", "tool"]), WORDS)


@given(st.lists(TOKEN, min_size=1, max_size=25), st.data())
def test_any_mix_of_choices_and_channels_survives_any_cut_in_any_chunking(
    tokens: list[tuple[int, str, str]], data: st.DataObject
) -> None:
    """What the client has in the end is, channel by channel, what the engine said."""

    def raw(some: list[tuple[int, tuple[int, str, str]]]) -> list[bytes]:
        """Tokens in a row of one choice in one chunk."""
        out = []
        for index in (0, 1):
            mine = [(at, kind, text) for at, (choice, kind, text) in some if choice == index]
            if not mine:
                continue
            fields: dict[str, Any] = {}
            for _, kind, text in mine:
                if kind == "tool":
                    calls = fields.setdefault("tool_calls", [call(0, arguments="")])
                    function = calls[0]["function"]
                    function["arguments"] = function.get("arguments", "") + text
                else:
                    fields[kind] = fields.get(kind, "") + text
            out.append(delta(index, *(at for at, _, _ in mine), **fields))
        return out

    numbered = list(enumerate(tokens))
    expected = delivered(role([1]), *(r for one in numbered for r in raw([one])))
    expected.settle()
    prepared = prepare(n=2, temperature=1)
    cut = data.draw(st.integers(0, len(tokens)))
    had = delivered(role([1]), *(r for one in numbered[:cut] for r in raw([one])))
    splice = Splice(prepared, had, planned(prepared, had))
    at = 0
    while at < len(numbered):
        size = data.draw(st.integers(1, 5))
        for chunk in raw(numbered[at : at + size]):
            splice.feed(chunk[6:-2])
        at += size
    for index, choice in expected.choices.items():
        assert had.choices[index].everything() == choice.everything()
