"""How many waiting requests may go to the replicas now: as many as these can run, no more.

What is sent beyond that would wait in one engine's queue, out of reach of a replica that comes a
moment later, and all of it would be lost with that engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

DEFAULT_SLOTS = 256
"""vLLM's own `--max-num-seqs` where nothing is said."""
MAX_DIGITS = 9
"""More is no count of requests; from 4,300 on Python reads no number at all."""
_FLAGS = ("--max-num-seqs", "--max-num-queued-reqs")


def slots(argv: Sequence[str]) -> int:
    """Requests that an engine with these arguments takes without refusing or queueing them."""
    limits = [limit for flag in _FLAGS if (limit := _number(argv, flag)) is not None]
    return max(1, min(limits, default=DEFAULT_SLOTS))


def room(replicas: Iterable[tuple[int, int]], on_the_way: int) -> int:
    """How many more may be released; `replicas` are (slots, running) of those that take work.

    `on_the_way`: released, but not yet counted as running.
    """
    return max(0, sum(max(0, able - running) for able, running in replicas) - on_the_way)


def grown(limit: int, most: int) -> int:
    """What an engine that refused at `limit` is tried with next: quickly more, one at least."""
    return min(most, limit + 1 + limit // 4)


def _number(argv: Sequence[str], flag: str) -> int | None:
    """The last value of a flag, written `--flag 8`, `--flag=8` or with underscores."""
    found = None
    for index, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") != flag:
            continue
        text = value if equals else argv[index + 1] if index + 1 < len(argv) else ""
        found = int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else found
    return found
