"""A replayed Responses stream is the stream that was cut: nothing lost, nothing twice."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference.api.kinds import Json
from spotinference.core import responses, stream
from spotinference.core.continuation import Class
from spotinference.core.responses import Answer
from spotinference.core.splice import Diverged, EngineFailed

WORDS = ("a", " spot", " machine", " is", " a guest", " who", " may", " leave", ".")


def run(tag: str, deltas: Sequence[str], *, at: int = 1) -> list[bytes]:
    """The data of each event of one run of an engine; ids and times are its own."""
    text = "".join(deltas)
    item = {"item_id": f"msg_{tag}", "output_index": 0, "content_index": 0}
    response = {"id": f"resp_{tag}", "created_at": at, "model": "m"}
    events: list[Json] = [
        {"type": "response.created", "response": response | {"status": "in_progress"}},
        {"type": "response.in_progress", "response": response | {"status": "in_progress"}},
        {"type": "response.output_item.added", "item": {"id": f"msg_{tag}", "content": []}},
        *({"type": "response.output_text.delta", "delta": delta, **item} for delta in deltas),
        {"type": "response.output_text.done", "text": text, **item},
        {"type": "response.output_item.done", "item": {"id": f"msg_{tag}", "content": [text]}},
        {
            "type": "response.completed",
            "response": response
            | {"status": "completed", "output": [{"id": f"msg_{tag}"}], "usage": {"total": 3}},
        },
    ]
    return [orjson.dumps(event | {"sequence_number": n}) for n, event in enumerate(events)]


def merged(words: Sequence[str], cuts: Sequence[int]) -> list[str]:
    """The same text in other pieces."""
    text = "".join(words)
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(text)}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


def sent(raw: bytes) -> list[Json]:
    return [json.loads(event.data) for event in stream.events(raw) if event.data]


@given(st.integers(0, 15), st.lists(st.integers(1, 40)), st.lists(st.integers(1, 40)))
def test_after_any_cut_and_in_any_pieces_the_client_has_one_whole_answer(
    cut: int, first: list[int], second: list[int]
) -> None:
    answer = Answer()
    before, after = run("one", merged(WORDS, first)), run("two", merged(WORDS, second), at=9)
    raw = b"".join(answer.feed(data) for data in before[:cut])
    if not answer.done:
        answer.start_replay()
        raw += b"".join(answer.feed(data) for data in after)
    events = sent(raw)
    assert answer.done
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(event.get("delta", "") for event in events) == "".join(WORDS)
    kinds = [event["type"] for event in events if "delta" not in event]
    assert kinds == [json.loads(d)["type"] for d in before if b'"delta"' not in d]
    known = "one" if cut else "two"
    assert {event["response"]["id"] for event in events if "response" in event} == {f"resp_{known}"}
    items = {event["item"]["id"] for event in events if "item" in event}
    assert len(items | {events[-1]["response"]["output"][0]["id"]}) == 1


def test_a_replay_of_another_text_is_refused_before_a_byte_of_it_goes_out() -> None:
    answer = Answer()
    for data in run("one", WORDS)[:7]:
        answer.feed(data)
    answer.start_replay()
    *again, other = run("two", ("a", " spot", " on"))[:6]
    assert b"".join(map(answer.feed, again)) == b""
    with pytest.raises(Diverged, match="the text differs"):
        answer.feed(other)


def test_a_replay_that_ends_early_is_refused() -> None:
    answer = Answer()
    for data in run("one", WORDS)[:8]:
        answer.feed(data)
    answer.start_replay()
    *again, end = run("two", WORDS[:3])[:7]
    assert b"".join(map(answer.feed, again)) == b""
    with pytest.raises(Diverged, match="came in place of"):
        answer.feed(end)


@pytest.mark.parametrize(
    "data",
    [
        b"not json",
        b"[DONE]",
        b'{"no": "type"}',
        b'{"error": {"message": "core died", "code": 500}}',
        b'{"type": "error", "message": "core died"}',
        b'{"type": "response.failed", "response": {"status": "failed"}}',
        b'{"type": "response.completed", "response": {"status": "cancelled"}}',
    ],
)
def test_what_is_no_good_event_is_the_engines_failure(data: bytes) -> None:
    with pytest.raises(EngineFailed):
        Answer().feed(data)


def test_a_response_that_was_announced_keeps_its_id_when_an_engine_begins() -> None:
    answer = Answer()
    waiting = responses.waiting({}, response_id="resp_ours", created_at=7, model="m")
    raw = answer.keep_alive(waiting) + answer.keep_alive(waiting)
    raw += b"".join(answer.feed(data) for data in run("one", WORDS))
    events = sent(raw)
    assert [event["type"] for event in events].count("response.created") == 1
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert {event["response"]["id"] for event in events if "response" in event} == {"resp_ours"}


def test_an_answer_that_is_too_long_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "MAX_RAW_BYTES", 600)
    answer = Answer()
    for data in run("one", WORDS):
        answer.feed(data)
    assert not answer.replayable
    assert answer._raw == []


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"input": "x"}, Class.REPLAY),
        ({"input": "x", "tools": [{"type": "function", "name": "f"}]}, Class.REPLAY),
        ({"input": "x", "tools": [{"type": "mcp", "server_url": "x"}]}, Class.REFUSED),
        ({"input": "x", "tools": ["web"]}, Class.REFUSED),
    ],
)
def test_what_the_engine_does_by_itself_is_not_done_twice(body: Json, kind: Class) -> None:
    assert responses.prepare(body | {"stream": True}, seed=3).kind is kind


def test_only_a_stream_that_may_be_replayed_is_given_a_seed() -> None:
    assert responses.prepare({"stream": True}, seed=3).body["seed"] == 3
    assert responses.prepare({"stream": True, "seed": 4}, seed=3).body["seed"] == 4
    assert "seed" not in responses.prepare({}, seed=3).body
    assert "seed" not in responses.prepare({"stream": True}, seed=3, enabled=False).body
