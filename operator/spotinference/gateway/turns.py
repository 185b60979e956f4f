"""Requests begin one per turn of the event loop while answers are streamed: tokens go between them.

To begin a request takes as long as to pass on ten to thirty chunks. Where many begin at the same
moment each live stream would wait for all of them; so it waits for one. `server` asks for a turn
after all that refuses a request by its head, and before its body is looked at.
"""

from __future__ import annotations

import asyncio
from collections import deque

SHARE = 8
"""Of many that wait, one in so many begins in a turn: a loop with long turns starves nobody."""


class Turns:
    def __init__(self) -> None:
        self.live = 0
        """streamed answers that flow to clients; while there is none, nobody waits"""
        self._taken = False
        """the present turn, or one that was given"""
        self._waiting: deque[asyncio.Future[None]] = deque()
        """first in, first out; no more than there are connections"""

    async def own(self) -> None:
        """Returns in a turn of the loop that this request may begin in; each turn lets one."""
        if self._taken:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        elif self.live:
            self._taken = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """One turn later: since the last the loop has looked at its sockets."""
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
