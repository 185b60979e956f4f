"""Ids of requests: random, and drawn in bulk, because the kernel's randomness costs a system call."""

from __future__ import annotations

import os

ID_BYTES = 16
DRAWN = 256
"""Ids per system call."""


class Ids:
    """Each call gives 32 hex digits that nobody can guess. One process's own: not for forks."""

    def __init__(self) -> None:
        self._left: list[str] = []

    def __call__(self) -> str:
        if not self._left:
            drawn = os.urandom(ID_BYTES * DRAWN).hex()
            step = ID_BYTES * 2
            self._left = [drawn[at : at + step] for at in range(0, len(drawn), step)]
        return self._left.pop()
