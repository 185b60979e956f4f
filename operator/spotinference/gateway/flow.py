"""The way of every token: from the engine's socket to the client's, in a callback of the loop.

`streamed` makes a `Flow` for each attempt that is relayed, and looks at what is out of the ordinary.
Nothing else belongs here: what runs here runs tens of thousands of times a second.
"""

from __future__ import annotations

from typing import Protocol

from spotinference.core import chunks
from spotinference.core.delivered import Delivered
from spotinference.core.stream import Framer
from spotinference.gateway.trace import Attempt


class Out(Protocol):
    """Where the chunks of an answer go: a client, a recording, nowhere yet."""

    def push(self, data: bytes) -> bool: ...


class Flow:
    """Takes the bytes of one attempt; ordinary events go out, hidden ids apart, as they are."""

    __slots__ = ("_attempt", "_delivered", "_framer", "_held", "_hide", "_out", "open")

    def __init__(self, out: Out, delivered: Delivered, attempt: Attempt, *, hide: bool) -> None:
        self._out = out
        self._delivered = delivered
        self._attempt = attempt
        self._hide = hide
        self._framer = Framer()
        self._held = b""
        self.open = False
        """status and headers are out; before, everything is held"""

    def take(self, data: bytes) -> bool:
        """False: for `held` to say why."""
        if self.open and chunks.lone(data) and not self._framer.pending:
            return self._out.push(self.passing(data))
        whole = self._framer.feed(data)
        if not whole:
            return True
        if self.open and chunks.ordinary(whole):
            return self._out.push(self.passing(whole))
        self._held = whole
        return False

    def held(self) -> bytes:
        """Whole events that `take` did not give; empty: the client takes no more for now."""
        whole, self._held = self._held, b""
        return whole

    def passing(self, whole: bytes) -> bytes:
        """Ordinary events as the client gets them; from now on it has them."""
        self._delivered.record(whole)
        self._attempt.token()
        return chunks.hide_token_ids(whole) if self._hide else whole
