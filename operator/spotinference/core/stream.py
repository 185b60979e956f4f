"""Server-sent events without I/O: bytes in, events out, whatever the split.

`Framer` is for the way of every token: it finds whole events and keeps their bytes as they are.
`events` reads them as the specification says (LF, CRLF and CR line ends, comments, several data
lines): where one is looked at closely, and what was delivered when a backend died.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""One event: the first carries the ids of the prompt, 7 bytes each, so this fits 1 M of context."""

_EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n|\Z)){2}")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_CR = 13
"""A number is found at a fifth of the cost of a byte string."""


class EventTooLong(ValueError):
    """A peer sent `MAX_EVENT_BYTES` without ending an event."""


class Framer:
    """Cuts a byte stream after whole events; what is not whole yet stays here."""

    __slots__ = ("_limit", "pending")

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        self.pending = b""
        """the beginning of an event whose end has not come"""
        self._limit = limit

    def feed(self, data: bytes) -> bytes:
        """All events that are whole now, unchanged; empty when none is."""
        if not self.pending and data.endswith(b"\n\n") and _CR not in data:
            return data  # nearly always
        buffered = self.pending + data if self.pending else data
        if _CR not in buffered:
            end = buffered.rfind(b"\n\n") + 2
            if end == 1:
                end = 0
        else:
            end = 0
            for match in _EVENT_END.finditer(buffered):
                end = match.end()
        self.pending = buffered[end:]
        if len(self.pending) > self._limit:
            raise EventTooLong(f"an event of more than {self._limit} bytes")
        return buffered[:end]


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `data` None: a block of comments only (a keep-alive)."""

    data: bytes | None
    type: bytes = b""


def events(whole: bytes) -> Iterator[Event]:
    """The events in bytes that end with an event's end, as `Framer.feed` returns them."""
    data: list[bytes] = []
    kind = b""
    comment = False
    for line in _LINE_END.split(whole):
        if not line:
            if data:
                yield Event(b"\n".join(data), kind)
            elif comment:
                yield Event(None)
            data, kind, comment = [], b"", False
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not name:
            comment = True
        elif name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value
