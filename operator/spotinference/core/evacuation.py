"""Which answers leave a replica that has a notice, and when.

Per answer: *finish here* when what is left of it fits before the deadline at the speed measured,
else *move now*; one that cannot be carried on stays until the end. An answer that is given whole
tells nothing of itself and is asked for again elsewhere, which costs all of it: it stays while it may
still come, and leaves when the deadline is as near as the margin. Those that move do not go at
once but in equal portions, so that the replicas they go to are not stormed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    FINISH = "finish"
    MOVE = "move"
    STAY = "stay"


@dataclass(frozen=True, slots=True)
class Progress:
    """One answer, as it stands."""

    movable: bool
    """its class can be carried on by another replica, or nothing of it was sent yet"""
    repeats: bool
    """a move generates again what was delivered: each second of waiting makes it dearer"""
    tokens: int
    """delivered, per choice"""
    tokens_left: int | None
    """at most; None: not bounded"""
    tokens_per_s: float | None
    """per choice; None: not measured yet"""
    whole: bool = False
    """it comes in one piece: nobody knows how far it is, and a move begins it anew"""


@dataclass(frozen=True, slots=True)
class Notice:
    left_s: float
    """until the replica is gone"""
    margin_s: float
    """kept free before that: clocks differ, and the last bytes need their way"""
    tick_s: float
    """until the next decision"""


def verdict(progress: Progress, notice: Notice) -> Verdict:
    if not progress.movable:
        return Verdict.STAY
    if progress.whole:
        return Verdict.STAY if notice.left_s > notice.margin_s else Verdict.MOVE
    if progress.tokens_left is None or not progress.tokens_per_s:
        return Verdict.MOVE
    needs_s = progress.tokens_left / progress.tokens_per_s
    return Verdict.FINISH if needs_s <= notice.left_s - notice.margin_s else Verdict.MOVE


def leaving(answers: Sequence[Progress], notice: Notice) -> list[int]:
    """Places of those that go now: a portion, such that the last goes at half of the time left.

    First those whose move gets dearer while they stay, of these the shortest; then the longest way
    to go. So what moves last may, when it was quicker than it looked, not have to.
    """
    movers = [place for place, one in enumerate(answers) if verdict(one, notice) is Verdict.MOVE]
    window_s = (notice.left_s - notice.margin_s) / 2
    if window_s <= notice.tick_s:
        return movers
    movers.sort(key=lambda place: _order(answers[place]))
    return movers[: math.ceil(len(movers) * notice.tick_s / window_s)]


def _order(one: Progress) -> tuple[bool, float]:
    if one.repeats:
        return False, one.tokens
    return True, -math.inf if one.tokens_left is None else -one.tokens_left
