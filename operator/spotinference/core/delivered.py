"""What a client already has of a streamed answer: kept as raw bytes, read when it matters.

On the way of every token only `record` runs. `settle` parses what was recorded: when a backend
died, or when the raw bytes reach their bound.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from spotinference.api.kinds import Json
from spotinference.core import chunks, deltas, stream
from spotinference.core.chunks import Endpoint, Identity
from spotinference.core.deltas import IDS, LOGPROBS, TEXT, Channel, Part

MAX_RAW_BYTES = 256 * 1024
"""Raw events kept unparsed: about 1,000 chunks, so most answers end without being parsed."""
SETTLE_BYTES = 16 * 1024
"""Parsed at once when the bound is reached: a fraction of a millisecond."""
MAX_TOKENS = 2_000_000
"""Beyond this an answer is no longer continuable (8 MB of ids)."""

_LAST_WRITES = 3
"""The finish chunk, the usage chunk and [DONE] come in at most so many reads."""
_IDS = re.compile(rb'"token_ids":\[([^\]]+)\]')
_PROMPT_IDS = re.compile(rb'"prompt_token_ids":\[([^\]]+)\]')
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"')


@dataclass(frozen=True, slots=True)
class Mark:
    """A point where the engine's detokenizer held nothing back: tokens and characters before it.

    A token that ends within a multi-byte character emits no text, and a detokenizer that starts
    at such a point is wrong (tokenizers' DecodeStream then emits the whole prompt as text; the
    slow one loses the character). A chunk of exactly one token that did emit text ends at a
    character's end.
    """

    tokens: int
    chars: int


def _array(items: Iterable[int] = ()) -> array[int]:
    return array("q", items)


@dataclass(slots=True)
class Choice:
    """What the client has of one choice, each channel (`core/deltas.py`) on its own."""

    prompt_ids: array[int] | None = None
    """of this choice's own prompt: completions say it per choice, chat once for all"""
    token_ids: array[int] = field(default_factory=_array)
    text: list[str] = field(default_factory=list)
    chars: int = 0
    others: dict[Channel, list[Part]] = field(default_factory=dict)
    """reasoning, tool calls, log probabilities: in the pieces in which they came"""
    role: str | None = None
    """named by the chunk that opened a chat message"""
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    _mark_tokens: array[int] = field(default_factory=lambda: _array([0]))
    _mark_chars: array[int] = field(default_factory=lambda: _array([0]))

    def add(self, found: dict[Channel, Part]) -> None:
        ids, text = found.get(IDS, ()), found.get(TEXT, "")
        assert isinstance(ids, tuple)
        assert isinstance(text, str)
        self.token_ids.extend(ids)  # type: ignore[arg-type]
        for channel, part in found.items():
            if channel not in (IDS, TEXT):
                self.others.setdefault(channel, []).append(part)
        if text:
            self.text.append(text)
            self.chars += len(text)
            if len(ids) == 1:
                self._mark_tokens.append(len(self.token_ids))
                self._mark_chars.append(self.chars)

    def text_from(self, chars: int) -> str:
        return "".join(self.text)[chars:]

    def everything(self) -> dict[Channel, Part]:
        """All channels from their beginning."""
        found: dict[Channel, Part] = {}
        if self.token_ids:
            found[IDS] = tuple(self.token_ids)
        if self.text:
            found[TEXT] = self.text_from(0)
        for channel, pieces in self.others.items():
            if isinstance(pieces[0], str):
                found[channel] = "".join(str(piece) for piece in pieces)
            else:
                found[channel] = tuple(item for piece in pieces for item in piece)
        return found

    def mark(self, *, reach: int) -> Mark:
        """The latest clean point with at least `reach` delivered characters after it."""
        for tokens, chars in zip(
            reversed(self._mark_tokens), reversed(self._mark_chars), strict=True
        ):
            if tokens == 0 or self.chars - chars >= reach:
                return Mark(tokens, chars)
        return Mark(0, 0)


@dataclass(slots=True)
class Delivered:
    endpoint: Endpoint
    identity: Identity | None = None
    prompt_ids: array[int] | None = None
    """of the first prompt; None when the engine did not say"""
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Json | None = None
    """the engine's count of the whole answer: its last chunk but for [DONE]"""
    system_fingerprint: str | None = None
    """comes with the usage"""
    metrics: Json | None = None
    """likewise, of engines that measure each request"""
    raw_limit: int = MAX_RAW_BYTES
    """bytes kept unparsed"""
    done: bool = False
    unreadable: bool = False
    """the client has something that is no chunk: nothing may be appended to what is not known"""
    substance: bool = False
    """anything but role chunks was delivered: an answer that starts anew would repeat it"""
    _raw: list[bytes] = field(default_factory=list)
    _raw_bytes: int = 0

    def record(self, raw: bytes) -> None:
        """Whole events that were sent to the client, as the engine sent them (ids not hidden)."""
        self._raw.append(raw)
        self._raw_bytes += len(raw)
        if self._raw_bytes > self.raw_limit:
            self._settle_to(max(0, self.raw_limit - SETTLE_BYTES))

    def settle(self) -> None:
        """Parses what was recorded since the last time."""
        self._settle_to(0)

    def _settle_to(self, left_bytes: int) -> None:
        """Parses the oldest until no more than this many bytes are left unparsed."""
        while self._raw and self._raw_bytes > left_bytes:
            raw = self._raw.pop(0)
            self._raw_bytes -= len(raw)
            for event in stream.events(raw):
                if event.data == chunks.DONE_DATA:
                    self.done = True
                elif event.data is not None:
                    self._read(event.data)

    def _read(self, data: bytes) -> None:
        """`absorb`, from an engine that may send what it likes."""
        chunk = chunks.decode(data)
        try:
            if chunk is not None:
                self.absorb(chunk)
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError):
            chunk = None
        self.unreadable |= chunk is None

    def absorb(self, chunk: Json) -> None:
        """One chunk that the client has."""
        if self.identity is None:
            self.identity = chunks.identity(chunk)
        if self.prompt_ids is None and (ids := chunks.prompt_token_ids(chunk)) is not None:
            self.prompt_ids = _array(ids)
        found = chunk.get("choices") or []
        if not found and chunk.get("usage") is not None:
            self.usage = chunk["usage"]
            self.system_fingerprint = chunk.get("system_fingerprint")
            self.metrics = chunk.get("metrics")
        for choice in found:
            self._absorb_choice(choice)

    def _absorb_choice(self, choice: Json) -> None:
        index = int(choice.get("index") or 0)
        mine = self.choices.get(index)
        if mine is None:
            mine = self.choices[index] = Choice()
        mine.role = mine.role or chunks.role(choice)
        if (ids := choice.get("prompt_token_ids")) is not None:
            mine.prompt_ids = _array(ids)
        found = deltas.parts(self.endpoint, choice)
        finish = choice.get("finish_reason")
        if found or finish is not None:
            self.substance = True
            mine.add(found)
            if finish is not None:
                mine.finish_reason, mine.stop_reason = finish, choice.get("stop_reason")

    @property
    def only(self) -> Choice:
        """The choice of an answer that has one."""
        return self.choices.get(0) or Choice()

    @property
    def plain(self) -> bool:
        """One choice, all of it text with known ids: it may go on through token prompts."""
        return (
            self.prompt_ids is not None
            and self.choices.keys() <= {0}
            and not self.only.others
            and len(self.only.token_ids) > 0
        )

    @property
    def tokens(self) -> int:
        """Generated tokens that the client has, as far as the engine named them."""
        return sum(len(choice.token_ids) for choice in self.choices.values())

    @property
    def pieces(self) -> int:
        """Chunks that added something to the answer: nearly each is a token."""
        self.settle()
        return sum(
            len(choice.text) + sum(len(p) for name, p in choice.others.items() if name != LOGPROBS)
            for choice in self.choices.values()
        )

    def counted(self) -> tuple[int | None, int | None]:
        """Tokens of prompt and answer for one that was not finished; what is raw stays unparsed.

        None: the engine did not name them.
        """
        prompt = None if self.prompt_ids is None else len(self.prompt_ids)
        generated = self.tokens
        raw = b"".join(self._raw)
        if prompt is None and (ids := _PROMPT_IDS.search(raw)) is not None:
            prompt = ids[1].count(b",") + 1
        each = _IDS.findall(raw)
        return prompt, (generated + len(each) + sum(ids.count(b",") for ids in each)) or None

    def finished(self, choices: int) -> bool:
        """All choices have their finish_reason.

        `[DONE]` without that ends nothing: an engine that
        shuts down answers a token prompt with `[DONE]` alone.
        """
        if choices == 1 and any(
            _FINISH.search(raw) for raw in islice(reversed(self._raw), _LAST_WRITES)
        ):
            return True
        self.settle()
        ended = sum(choice.finish_reason is not None for choice in self.choices.values())
        return ended >= choices
