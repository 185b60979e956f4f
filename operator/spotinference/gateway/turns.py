"""Requests begin one per turn of the event loop while answers are streamed: tokens go between them.

To begin a request takes as long as to pass on ten to thirty chunks. Where many begin at the same
moment each live stream would wait for all of them; so it waits for one. `server` asks for a turn
after all that refuses a request by its head, and before its body is looked at.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

SHARE = 8
"""Of many that wait, one in so many begins in a turn: a loop with long turns starves nobody."""
CROWD = 12
"""Pieces of answers in one turn: with more, the loop is behind with its tokens."""
PATIENCE = 8
"""Turns for which a loop that is behind lets nobody begin: some milliseconds."""


class Tokens(Protocol):
    """What comes of answers, turn by turn."""

    @property
    def poured(self) -> int:
        """Pieces in the last turn that had any."""

    def pour(self) -> None:
        """Passes on what has come."""


class Turns:
    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._patience = PATIENCE
        self.live = 0
        """streamed answers that flow to clients; while there is none, nobody waits"""
        self._taken = False
        """the present turn, or one that was given"""
        self._waiting: deque[asyncio.Future[None]] = deque()
        """first in, first out; no more than there are connections"""

    async def own(self) -> None:
        """Returns in a turn of the loop that this request may begin in; each turn lets one."""
        if self._taken or (self.live and self._behind):
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            self._take()
            await waiter
        elif self.live:
            self._take()
        self._tokens.pour()  # what has come goes first

    @property
    def _behind(self) -> bool:
        return self._tokens.poured > CROWD

    def _take(self) -> None:
        if not self._taken:
            self._taken = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """One turn later: since the last the loop has looked at its sockets."""
        if self._waiting and self._patience and self.live and self._behind:
            self._patience -= 1
            asyncio.get_running_loop().call_soon(self._next)
            return
        self._patience = PATIENCE
        left = max(1, len(self._waiting) // SHARE)
        while self._waiting and left:
            waiter = self._waiting.popleft()
            if not waiter.done():  # else its client is gone
                waiter.set_result(None)
                left -= 1
        if left and not self._waiting:
            self._taken = False
        else:
            asyncio.get_running_loop().call_soon(self._next)
