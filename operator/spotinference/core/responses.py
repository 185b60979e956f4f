"""A Responses stream that survives its replica: by a replay that is verified event by event.

Events of this API carry no token ids, so nothing continues by token. The same request (greedy, or
with a seed) is sent again; what the client has must come again, text by text and event by event,
and is dropped; what follows goes out under the answer's own ids and sequence numbers. Where the
engine runs tools itself a replay would run them twice: such an answer is refused instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from spotinference.api.kinds import Json
from spotinference.core import chunks, stream
from spotinference.core.chunks import Endpoint
from spotinference.core.continuation import Class, Prepared
from spotinference.core.splice import Diverged, EngineFailed

MAX_RAW_BYTES = 4 * 1024 * 1024
"""Events kept for a replay, about 16,000 deltas; an answer that is longer is not replayable."""

_ENDINGS = {"response.completed", "response.incomplete", "response.failed"}
_OPENINGS = {"response.created", "response.in_progress", "response.queued"}
_CLIENT_SIDE = {"function", "custom", "namespace"}
"""Tools that the client runs; the engine only names them."""
_IDS = {"id", "item_id", "call_id"}
_NOT_COMPARED = _IDS | {"sequence_number", "created_at", "completed_at", "logprobs"}
"""Differ from run to run, or by rounding, where the answer is the same."""


def prepare(body: Json, *, seed: int, enabled: bool = True) -> Prepared:
    """Classifies a valid request; `seed` is injected where sampling would not repeat itself."""
    kind, reason = _classify(body, enabled=enabled)
    sent = dict(body)
    streamed = body.get("stream") is True
    if streamed and kind is Class.REPLAY and body.get("seed") is None:
        sent["seed"] = seed
    return Prepared(
        endpoint=Endpoint.RESPONSES,
        body=sent,
        kind=kind,
        reason=reason,
        stream=streamed,
        hide_token_ids=False,
        include_usage=False,
        continuous_usage=False,
    )


def _classify(body: Json, *, enabled: bool) -> tuple[Class, str]:
    if not enabled:
        return Class.REFUSED, "continuation is off for this tier (spec.interruption.continuation)"
    for tool in body.get("tools") or ():
        if not isinstance(tool, dict) or tool.get("type") not in _CLIENT_SIDE:
            return Class.REFUSED, "the engine runs tools of this request, and would run them twice"
    return Class.REPLAY, "events carry no tokens: generated again and verified"


@dataclass(frozen=True, slots=True)
class _Step:
    """One event to be seen again, or the text of several deltas of one part."""

    key: Json
    """what must be equal"""
    text: str | None
    """of deltas"""
    event: Json


class Answer:
    """What the client has of one streamed response, and the seam to its next replica."""

    def __init__(self) -> None:
        self.done = False
        """the event that ends the response went out"""
        self.usage: Json | None = None
        """what the engine counted, once the response has ended"""
        self.sequence = 0
        """number of the next event"""
        self._raw: list[bytes] = []
        self._raw_bytes = 0
        self._steps: list[_Step] = []
        self._at = 0
        self._chars = 0
        """of the current step's text that came again"""
        self._names: dict[str, str] = {}
        """ids of the new replica to ids that the client knows"""
        self._head: Json = {}
        """id and created_at of the response"""
        self._opened: Json = {}
        """the response as it was announced"""
        self._announced = False
        """by us, before an engine began"""

    @property
    def began(self) -> bool:
        """The client has an event of the engine."""
        return self._raw_bytes > 0

    @property
    def replayable(self) -> bool:
        return self._raw_bytes <= MAX_RAW_BYTES

    @property
    def verified(self) -> bool:
        """Everything the client has came again."""
        return self._at >= len(self._steps)

    @property
    def deltas(self) -> int:
        """Events with a piece of the answer that the client has: nearly each is a token."""
        if not self.replayable:
            return self.sequence
        return sum(raw.count(b".delta\n") for raw in self._raw)

    def start_replay(self) -> None:
        """The next event comes from another replica, which must repeat what the client has."""
        self._steps = _steps(b"".join(self._raw))
        self._at = self._chars = 0
        self._names = {}
        first = self._steps[0].event.get("response") if self._steps else None
        if not self._head and isinstance(first, dict):
            self._begin(first)

    def keep_alive(self, response: Json) -> bytes:
        """An event for clients that wait for parsed events only.

        `response` is what one looks like that has not begun: it is announced under that id, and
        the engine's own opening is dropped then.
        """
        opening = []
        if not self._head:
            begun = self._steps[0].event.get("response") if self._steps else None
            if begun is None and self._raw:
                begun = _steps(self._raw[0])[0].event.get("response")
            if begun is None:
                begun = response
                self._announced = True
                opening.append(self._own("response.created", begun))
            self._begin(begun)
        opening.append(self._own("response.in_progress", self._opened))
        return b"".join(opening)

    def _begin(self, response: Json) -> None:
        self._opened = response
        self._head = {key: response[key] for key in ("id", "created_at") if key in response}

    def _own(self, kind: str, response: Json) -> bytes:
        event = {"response": response, "sequence_number": self.sequence, "type": kind}
        self.sequence += 1
        return _written(kind, orjson.dumps(event))

    def feed(self, data: bytes) -> bytes:
        """The data of one event of a replica; returns the event for the client, or nothing.

        `EngineFailed` for an error, or for what is no event of this API; `Diverged` when a replay
        does not repeat what was delivered.
        """
        event = chunks.decode(data)
        if event is None:
            raise EngineFailed({}, "an event that is not JSON")
        if (error := chunks.error_of(event)) is not None:
            raise EngineFailed(error)
        kind = event.get("type")
        if not isinstance(kind, str):
            raise EngineFailed({}, "an event without a type")
        if kind == "error":
            raise EngineFailed(event)
        if kind == "response.failed" or _cancelled(event):
            raise EngineFailed({}, "the engine gave the response up")
        if self._announced and kind in _OPENINGS:
            return b""
        if not self.verified:
            rest = self._verify(event)
            if rest is None:
                return b""
            event, data = rest, b""
        return self._send(kind, event, data)

    def _send(self, kind: str, event: Json, data: bytes) -> bytes:
        if self._head or event.get("sequence_number") != self.sequence:
            event = _renamed(event, self._names)
            if self._head and isinstance(event.get("response"), dict):
                event["response"] = event["response"] | self._head
            event["sequence_number"] = self.sequence
            data = orjson.dumps(event)
        elif not data:
            data = orjson.dumps(event)
        self.sequence += 1
        self.done = kind in _ENDINGS
        if self.done and isinstance(response := event.get("response"), dict):
            self.usage = response.get("usage")
        raw = _written(kind, data)
        self._raw_bytes += len(raw)
        if self.replayable:
            self._raw.append(raw)
        else:
            self._raw.clear()
        return raw

    def _verify(self, event: Json) -> Json | None:
        """None, or what of the event is new to the client."""
        step = self._steps[self._at]
        key, text = _key(event)
        if text == "":
            return None
        if key != step.key:
            raise Diverged(f"{event['type']} came in place of {step.event['type']}")
        self._names |= dict(_pairs(event, step.event))
        if step.text is None:
            self._at += 1
            return None
        assert text is not None  # equal keys: a delta too
        left = step.text[self._chars :]
        again = text[: len(left)]
        if not left.startswith(again):
            raise Diverged("the text differs")
        self._chars += len(again)
        if self._chars < len(step.text):
            return None
        self._at, self._chars = self._at + 1, 0
        fresh = text[len(again) :]
        if not fresh:
            return None
        if not self.verified:
            raise Diverged("more text came than was delivered")
        if event.get("logprobs"):
            raise Diverged("log probabilities of a delta that straddles the cut")
        return event | {"delta": fresh}


def error_event(
    message: str, *, kind: str, code: str, param: str | None, status: int, sequence: int
) -> bytes:
    """The event that ends a response which cannot be ended well.

    Flat as the API's reference has it, and once more below `error`: the OpenAI SDKs raise only on
    that key.
    """
    error = {"message": message, "type": kind, "param": param, "code": code, "status": status}
    event = {
        "type": "error",
        "code": code,
        "message": message,
        "param": param,
        "sequence_number": sequence,
        "error": error,
    }
    return _written("error", orjson.dumps(event))


def waiting(body: Json, *, response_id: str, created_at: int, model: str) -> Json:
    """A response that has not begun, as the API shows it."""
    return {
        "id": response_id,
        "created_at": created_at,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata"),
        "model": model,
        "object": "response",
        "output": [],
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "temperature": body.get("temperature"),
        "tool_choice": body.get("tool_choice") or ("auto" if body.get("tools") else "none"),
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p"),
        "status": "in_progress",
        "usage": None,
    }


def _written(kind: str, data: bytes) -> bytes:
    return b"event: " + kind.encode() + b"\n" + chunks.event(data)


def _cancelled(event: Json) -> bool:
    """VLLM ends an aborted response with `response.completed` all the same."""
    response = event.get("response")
    return isinstance(response, dict) and response.get("status") in {"cancelled", "failed"}


def _steps(raw: bytes) -> list[_Step]:
    steps: list[_Step] = []
    for event in stream.events(raw):
        decoded = chunks.decode(event.data or b"")
        if decoded is None:
            continue
        key, text = _key(decoded)
        if text == "":
            continue
        last = steps[-1] if steps else None
        if text is not None and last is not None and last.text is not None and last.key == key:
            steps[-1] = _Step(key, last.text + text, last.event)
        else:
            steps.append(_Step(key, text, decoded))
    return steps


def _key(event: Json) -> tuple[Json, str | None]:
    """What of an event must come again, and a delta's text, which may be cut elsewhere."""
    text = event.get("delta")
    if isinstance(text, str) and str(event.get("type")).endswith(".delta"):
        rest = {name: value for name, value in event.items() if name != "delta"}
        return _compared(rest), text
    return _compared(event), None


def _compared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _compared(item) for key, item in value.items() if key not in _NOT_COMPARED}
    if isinstance(value, list):
        return [_compared(item) for item in value]
    return value


def _pairs(new: Any, old: Any) -> Iterator[tuple[str, str]]:
    """Ids that stand in the same place of two events which are equal but for them."""
    if isinstance(new, dict) and isinstance(old, dict):
        for key, value in new.items():
            other = old.get(key)
            if key in _IDS and isinstance(value, str) and isinstance(other, str):
                yield value, other
            else:
                yield from _pairs(value, other)
    elif isinstance(new, list) and isinstance(old, list):
        for value, other in zip(new, old, strict=False):
            yield from _pairs(value, other)


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            key: names.get(item, item)
            if key in _IDS and isinstance(item, str)
            else _renamed(item, names)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    return value
