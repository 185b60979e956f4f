"""One answer that a replica is giving: what it counts for, and the deadlines it must keep.

Nothing here runs per token and no timer is set per request: `Engines` looks at all open attempts
now and then, and most end before they are old enough to be asked for their deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from spotinference.clients.engine_http import Answer
from spotinference.core.evacuation import Progress
from spotinference.core.routing import Work
from spotinference.gateway.replicas import Asker, Replica
from spotinference.gateway.vitals import Vitals

Judge = Callable[["Attempt", BaseException | None], None]
"""Closes an attempt that is over; raises what its error really was."""


class Attempt:
    """A context: while it is open the replica counts it, at its end the replica is judged by it."""

    __slots__ = (
        "_asker",
        "_dropped",
        "_first_at",
        "_judge",
        "_sent_at",
        "_tokens",
        "_vitals",
        "answer",
        "due_at",
        "expired",
        "moved",
        "replica",
        "stream",
        "work",
    )

    def __init__(
        self, replica: Replica, work: Work, asker: Asker, vitals: Vitals, judge: Judge, *,
        stream: bool,
    ) -> None:  # fmt: skip
        self.replica = replica
        self._asker = asker
        self.moved = False
        """it was left before its replica goes"""
        self._judge = judge
        self.work = work
        self.answer: Answer | None = None
        self.expired: str | None = None
        """the deadline that ended it: `first` or `total`"""
        self._vitals = vitals
        self.stream = stream
        self._tokens = work.tokens(vitals.usual_answer_tokens(replica.tier))
        self._sent_at = asyncio.get_running_loop().time()
        self._first_at: float | None = None
        self._dropped = False
        self.due_at = self._sent_at + vitals.soonest_s
        """in the loop's time; before this no deadline can have passed"""
        replica.running += 1
        replica.outstanding += self._tokens
        replica.on_gone.add(self.drop)
        replica.answers.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._judge(self, error)

    def progress(self) -> Progress:
        """How far the answer is, for the decision whether it leaves a replica with a notice."""
        return self._asker.progress()

    def move(self) -> None:
        """Ends as if its replica were gone; the answer goes on elsewhere."""
        if not self._dropped:
            self.moved = True
            self.drop()

    def drop(self) -> None:
        """Whoever reads the answer gets an error at once."""
        self._dropped = True
        if self.answer is not None:
            self.answer.drop()

    def answered_by(self, answer: Answer) -> None:
        """The connection that the answer comes over."""
        self.answer = answer
        if self._dropped:
            answer.drop()

    def close(self, *, whole: bool) -> None:
        """The replica is rid of it; a whole answer teaches how fast the tier is."""
        replica = self.replica
        replica.on_gone.discard(self.drop)
        replica.answers.discard(self)
        replica.running -= 1
        replica.outstanding -= self._tokens
        if not whole:
            return
        replica.answered()
        if self._first_at is not None and self.stream and self.answer is not None:
            took_s = asyncio.get_running_loop().time() - self._first_at
            self._vitals.answered(replica.tier, self.answer.reads, took_s)

    def first_byte(self) -> None:
        """The engine has begun to speak: the prompt is prefilled, silence now means it is lost."""
        if self._first_at is not None:
            return
        replica, work = self.replica, self.work
        self._first_at = now = asyncio.get_running_loop().time()
        replica.outstanding -= work.prompt_tokens
        self._tokens -= work.prompt_tokens
        if self.stream:
            self._vitals.first(replica.tier, work, now - self._sent_at)
        assert self.answer is not None
        self.answer.expect_within(self._vitals.next_s(replica.tier))

    def look(self, now: float) -> bool:
        """Drops an answer that is past its deadline; True when this did.

        The deadline is reckoned anew: a first byte may take longer when others, meanwhile, have
        shown that the tier is slower, and a client that does not read is not the engine's fault.
        """
        if now < self.due_at or self._dropped:
            return False
        limits = self._vitals.deadlines(self.replica.tier, self.work)
        waits_for_first = self._first_at is None and self.stream
        limit_s = limits.first_s if waits_for_first else limits.total_s
        self.due_at = self._sent_at + limit_s
        if now < self.due_at:
            return False
        if self.answer is not None and self.answer.paused:
            self.due_at = now + self._vitals.patience_s
            return False
        self.expired = "first" if waits_for_first else "total"
        if waits_for_first:
            self._vitals.first(self.replica.tier, self.work, now - self._sent_at)
        self.drop()
        return True
