"""What a client already has of a streamed answer: kept as raw bytes, read when it matters.

On the way of every token only `record` runs. `settle` parses what was recorded: when a backend
died, or when the raw bytes reach their bound.
"""

from __future__ import annotations

import re
from array import array
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

from spotinference.api.kinds import Json
from spotinference.core import chunks, stream
from spotinference.core.chunks import Endpoint, Identity

MAX_RAW_BYTES = 256 * 1024
"""Raw events kept unparsed: about 1,000 chunks, so most answers end without being parsed."""
SETTLE_BYTES = 16 * 1024
"""Parsed at once when the bound is reached: a fraction of a millisecond."""
MAX_TOKENS = 2_000_000
"""Beyond this an answer is no longer continuable (8 MB of ids)."""

_LAST_WRITES = 3
"""The finish chunk, the usage chunk and [DONE] come in at most so many reads."""
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


@dataclass(slots=True)
class Delivered:
    endpoint: Endpoint
    identity: Identity | None = None
    prompt_ids: array[int] | None = None
    token_ids: array[int] = field(default_factory=lambda: array("q"))
    text: list[str] = field(default_factory=list)
    chars: int = 0
    roles: set[int] = field(default_factory=set)
    finish_reason: str | None = None
    usage_seen: bool = False
    done: bool = False
    plain: bool = True
    """only text was delivered: a continuation may come through the completions endpoint"""
    substance: bool = False
    """anything but role chunks was delivered: an answer that starts anew would repeat it"""
    choices_seen: set[int] = field(default_factory=set)
    choices_finished: set[int] = field(default_factory=set)
    _mark_tokens: array[int] = field(default_factory=lambda: array("q", [0]))
    _mark_chars: array[int] = field(default_factory=lambda: array("q", [0]))
    _raw: deque[bytes] = field(default_factory=deque)
    _raw_bytes: int = 0

    def record(self, raw: bytes) -> None:
        """Whole events that were sent to the client, as the engine sent them (ids not hidden)."""
        self._raw.append(raw)
        self._raw_bytes += len(raw)
        if self._raw_bytes > MAX_RAW_BYTES:
            self._settle_to(MAX_RAW_BYTES - SETTLE_BYTES)

    def settle(self) -> None:
        """Parses what was recorded since the last time."""
        self._settle_to(0)

    def _settle_to(self, left_bytes: int) -> None:
        """Parses the oldest until no more than this many bytes are left unparsed."""
        while self._raw and self._raw_bytes > left_bytes:
            raw = self._raw.popleft()
            self._raw_bytes -= len(raw)
            for event in stream.events(raw):
                if event.data == chunks.DONE_DATA:
                    self.done = True
                elif event.data is not None and (chunk := chunks.decode(event.data)) is not None:
                    self.absorb(chunk)

    def absorb(self, chunk: Json) -> None:
        """One chunk that the client has."""
        if self.identity is None:
            self.identity = chunks.identity(chunk)
        if self.prompt_ids is None and (ids := chunks.prompt_token_ids(chunk)) is not None:
            self.prompt_ids = array("q", ids)
        choices = chunk.get("choices") or []
        if not choices and chunk.get("usage") is not None:
            self.usage_seen = True
        for choice in choices:
            self._absorb_choice(choice)

    def _absorb_choice(self, choice: Json) -> None:
        index = int(choice.get("index") or 0)
        self.choices_seen.add(index)
        piece = chunks.piece(self.endpoint, choice)
        if piece.role:
            self.roles.add(index)
            return
        if not (piece.text or piece.token_ids or piece.finish_reason) and piece.plain:
            return
        self.substance = True
        self.plain = self.plain and piece.plain
        self.token_ids.extend(piece.token_ids)
        if piece.text:
            self.text.append(piece.text)
            self.chars += len(piece.text)
            if len(piece.token_ids) == 1:
                self._mark_tokens.append(len(self.token_ids))
                self._mark_chars.append(self.chars)
        if piece.finish_reason is not None:
            self.finish_reason = piece.finish_reason
            self.choices_finished.add(index)

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
        return len(self.choices_finished) >= choices

    @property
    def continuable(self) -> bool:
        """One choice whose tokens are all known."""
        return (
            self.prompt_ids is not None
            and len(self.choices_seen) <= 1
            and len(self.token_ids) <= MAX_TOKENS
        )

    def mark(self, *, reach: int) -> Mark:
        """The latest clean point with at least `reach` delivered characters after it."""
        for tokens, chars in zip(
            reversed(self._mark_tokens), reversed(self._mark_chars), strict=True
        ):
            if tokens == 0 or self.chars - chars >= reach:
                return Mark(tokens, chars)
        return Mark(0, 0)

    def text_from(self, chars: int) -> str:
        return "".join(self.text)[chars:]
