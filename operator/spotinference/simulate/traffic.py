"""Requests on a virtual clock, as a fluid in cohorts: queued, begun, parked, continued, refused.

A replica does one second of work per second (`Service.work` says what a request takes) and an
answer lasts as long as one does on a full replica. First come, first served. While no replica
serves, the gateway parks what comes, up to `max_parked`, each for `cap_s` at most. An answer whose
replica vanishes goes on elsewhere, ahead of the queue, for the rest of its time; its prompt and
what it has said are read again, which costs `REREAD` of a request's work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from spotinference.simulate.autoscale_service import Service

REREAD = 0.1
"""Work of reading a prompt and half an answer again, as a share of the request's own."""
TINY = 1e-9


@dataclass(frozen=True, slots=True)
class Rules:
    cap_s: float
    max_parked: int
    late_after_s: float


@dataclass(slots=True)
class _Waiting:
    """Requests that wait to be begun, or answers that wait to go on (`left_s` is set)."""

    at: float
    count: float
    work: float
    """replica-seconds of one"""
    answer_s: float
    output_tokens: float
    """of one"""
    parked: bool
    cut: bool = False


@dataclass(slots=True)
class _Answers:
    """Begun one by one over a step, so they end one by one over a time as long."""

    last_ends_at: float
    count: float
    work: float
    output_tokens: float
    """of one"""
    left: float = 1.0
    """share that still runs"""


@dataclass(slots=True)
class _Replica:
    answers: list[_Answers] = field(default_factory=list)
    allowance: float = 0.0
    """replica-seconds it may still begin"""
    begun: float = 0.0
    """replica-seconds begun in the last step"""
    reread: float = 0.0
    """of those, for answers that it took over"""

    @property
    def running(self) -> float:
        return sum(a.count * a.left for a in self.answers)


@dataclass(slots=True)
class Tally:
    """Requests, and tokens of the answers begun."""

    requests: float = 0.0
    begun: float = 0.0
    late: float = 0.0
    parked: float = 0.0
    """waited while no replica served"""
    continued: float = 0.0
    """answers carried over to another replica; one that moves twice counts twice"""
    refused: float = 0.0
    """504 at the cap, or 429 beyond the bound"""
    cut: float = 0.0
    """answers that could not go on before the cap"""
    output_tokens: float = 0.0
    finished: float = 0.0
    finished_tokens: float = 0.0


@dataclass(slots=True)
class Traffic:
    service: Service
    rules: Rules
    tally: Tally = field(default_factory=Tally)
    waiting: deque[_Waiting] = field(default_factory=deque)
    replicas: dict[str, _Replica] = field(default_factory=dict)
    step_s: float = 0.0
    """length of the last step"""

    @property
    def queued(self) -> float:
        return sum(w.count for w in self.waiting)

    @property
    def oldest(self) -> float | None:
        return min((w.at for w in self.waiting), default=None)

    def running(self, replica: str) -> float:
        found = self.replicas.get(replica)
        return 0.0 if found is None else found.running

    def shares(self, replica: str) -> tuple[float, float]:
        """Of the last step: the part spent on requests, and on reading cut answers again."""
        found = self.replicas.get(replica)
        if found is None or not self.step_s:
            return 0.0, 0.0
        used = min(1.0, found.begun / self.step_s)
        again = used * found.reread / found.begun if found.begun else 0.0
        return used - again, again

    def arrive(
        self, now: float, requests: float, prompt: float, output: float, *, awake: bool
    ) -> None:
        """`prompt`, `output`: tokens of all of them together."""
        if requests <= 0:
            return
        self.tally.requests += requests
        work = self.service.work(requests, prompt, output) / requests
        count = requests
        if not awake:
            count = min(count, max(0.0, self.rules.max_parked - self.queued))
            self.tally.refused += requests - count
            self.tally.parked += count
        if count > TINY:
            answer_s = work * self.service.concurrency
            tokens = output / requests
            self.waiting.append(_Waiting(now, count, work, answer_s, tokens, parked=not awake))

    def step(self, now: float, dt: float, serving: Collection[str], alive: Collection[str]) -> None:
        """`serving` take new work; those that are only `alive` finish what they have."""
        self.step_s = dt
        self._lose(now, alive)
        for replica in self.replicas.values():
            replica.begun = replica.reread = 0.0
        if serving:
            self._begin_all(now, dt, serving)
        else:
            self._park()
        self._finish(now + dt)
        self._give_up(now)

    def close(self, now: float) -> None:
        """The end of the replay: those that have waited too long by now are late, although not begun."""
        for head in self.waiting:
            if not head.cut and now - head.at > self.rules.late_after_s:
                self.tally.late += head.count

    def _finish(self, now: float) -> None:
        for replica in self.replicas.values():
            for answer in replica.answers:
                left = min(answer.left, max(0.0, answer.last_ends_at - now) / self.step_s)
                done = answer.count * (answer.left - left)
                answer.left = left
                self.tally.finished += done
                self.tally.finished_tokens += done * answer.output_tokens
            replica.answers = [a for a in replica.answers if a.left > 0]

    def _lose(self, now: float, alive: Collection[str]) -> None:
        gone = [name for name in self.replicas if name not in alive]
        lost = [a for name in gone for a in self.replicas.pop(name).answers]
        for a in lost:
            # Those that still run end, in the mean, so long before the last of them.
            left_s = a.last_ends_at - now - a.left * self.step_s / 2
            self.waiting.appendleft(
                _Waiting(
                    now, a.count * a.left, a.work, left_s, a.output_tokens, parked=False, cut=True
                )
            )

    def _begin_all(self, now: float, dt: float, serving: Collection[str]) -> None:
        for name in serving:
            replica = self.replicas.setdefault(name, _Replica())
            # Unused time is not saved up; the debt of a request longer than a step is.
            replica.allowance = min(replica.allowance, 0.0) + dt
        open_ = [self.replicas[name] for name in serving if self.replicas[name].allowance > TINY]
        while self.waiting and open_:
            head = self.waiting[0]
            replica = max(open_, key=lambda r: r.allowance)
            self._begin(replica, head, now, len(open_))
            if head.count <= TINY:
                self.waiting.popleft()
            if replica.allowance <= TINY:
                open_.remove(replica)

    def _begin(self, replica: _Replica, head: _Waiting, now: float, among: int) -> None:
        work = head.work * (REREAD if head.cut else 1.0)
        fair = max(1.0, head.count / among)
        # A request is not split: the last one may overdraw the allowance, and is paid off later.
        count = min(head.count, fair, max(1.0, replica.allowance / work) if work > 0 else fair)
        last_ends_at = now + self.step_s + head.answer_s
        replica.answers.append(_Answers(last_ends_at, count, head.work, head.output_tokens))
        replica.allowance -= count * work
        replica.begun += count * work
        head.count -= count
        if head.cut:
            replica.reread += count * work
            self.tally.continued += count
            return
        waited_s = now - head.at
        self.tally.begun += count
        self.tally.output_tokens += head.output_tokens * count
        if waited_s > self.rules.late_after_s:
            self.tally.late += count

    def _park(self) -> None:
        """All replicas are gone: what waited at them waits at the gateway now."""
        for head in self.waiting:
            if not head.parked:
                head.parked = True
                self.tally.parked += head.count

    def _give_up(self, now: float) -> None:
        if not self.waiting or now - min(w.at for w in self.waiting) < self.rules.cap_s:
            return
        kept: deque[_Waiting] = deque()
        for head in self.waiting:
            if now - head.at < self.rules.cap_s:
                kept.append(head)
            elif head.cut:
                self.tally.cut += head.count
            else:
                self.tally.refused += head.count
        self.waiting = kept
