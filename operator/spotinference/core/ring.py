"""Which of several peers keeps what belongs to an id: the same answer on each of them.

Rendezvous hashing: when a peer comes or goes, only the ids that it has move.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def owner(name: str, peers: Iterable[str]) -> str | None:
    """The peer with the highest hash; None of no peers."""
    return max(peers, key=lambda peer: _weight(name, peer), default=None)


def _weight(name: str, peer: str) -> bytes:
    return hashlib.blake2b(f"{peer}\n{name}".encode(), digest_size=8).digest()
