"""Limits of a key without I/O or clock: uses in the last minute, and each gateway's share of one.

No store is shared between gateway processes, so each admits a share. What they admit together in
any minute is at most `limit + (processes - 1) * burst`, also while processes come and go:

- a process's share is `(limit + (processes - 1) * burst) // processes`;
- a process that starts beside others may use `burst` alone at first, because the others may
  have used up the whole limit before they saw it (`NEWCOMER_S`);
- processes that went are counted for another minute, because what they admitted still counts.

Why a sliding window and no token bucket: docs/decisions/0009.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 60
NEWCOMER_S = 75.0
"""A window, and the time in which the other processes have surely seen the new one."""
BURST_PARTS = 4


def burst(limit: int) -> int:
    """What a process may admit above its even part, so that uneven load is not refused."""
    return max(1, limit // BURST_PARTS)


def share(limit: int, processes: int, *, newcomer: bool) -> int:
    """What one of so many processes may admit of a limit; at least 1."""
    if processes == 1 and not newcomer:
        return limit
    extra = burst(limit)
    part = (limit + (processes - 1) * extra) // processes
    return min(part, extra) if newcomer else part


@dataclass(slots=True)
class Window:
    """What was used within the last minute, in slots of a second: `WINDOW_S` at least is covered.

    `now` is in seconds and never goes back.
    """

    _slots: deque[tuple[int, int]] = field(default_factory=deque)
    _sum: int = 0

    def used(self, now: float) -> int:
        oldest = int(now) - WINDOW_S
        while self._slots and self._slots[0][0] < oldest:
            self._sum -= self._slots.popleft()[1]
        return self._sum

    def add(self, now: float, amount: int) -> None:
        second = int(now)
        if self._slots and self._slots[-1][0] == second:
            amount_before = self._slots.pop()[1]
            self._slots.append((second, amount_before + amount))
        else:
            self._slots.append((second, amount))
        self._sum += amount

    def correct(self, now: float, at: float, amount: int) -> None:
        """What was added at `at` was `amount` more (counted from now) or less (there)."""
        self.used(now)
        if amount >= 0:
            self.add(now, amount)
            return
        for index, (second, used) in enumerate(self._slots):
            if second == int(at):
                self._slots[index] = (second, used + amount)
                self._sum += amount
                return

    def wait_s(self, now: float, allowed: int, amount: int) -> float:
        """Seconds until `amount` more fits into `allowed`, if nothing else is added meanwhile."""
        excess = self.used(now) + amount - allowed
        for second, used in self._slots:
            if excess <= 0:
                break
            excess -= used
            if excess <= 0:
                return max(0.0, second + WINDOW_S + 1 - now)
        return 0.0 if excess <= 0 else float(WINDOW_S)

    def reset_s(self, now: float) -> float:
        """Seconds until nothing of what was used counts any more."""
        return max(0.0, self._slots[-1][0] + WINDOW_S + 1 - now) if self.used(now) else 0.0


@dataclass(slots=True)
class Processes:
    """How many gateway processes share the limits, as one of them must reckon."""

    _seen: deque[tuple[float, int]] = field(default_factory=lambda: deque([(float("-inf"), 1)]))
    _newcomer_until: float = float("-inf")

    def started(self, now: float, *, beside_others: bool) -> None:
        if beside_others:
            self._newcomer_until = now + NEWCOMER_S

    def note(self, now: float, count: int) -> None:
        """`count` processes are there now, this one included."""
        if self._seen[-1][1] != count:
            self._seen.append((now, max(1, count)))

    def newcomer(self, now: float) -> bool:
        return now < self._newcomer_until

    def count(self, now: float) -> int:
        """The most that there were at one time within the last window."""
        if len(self._seen) == 1:  # nearly always; this is on the way of each request
            return self._seen[0][1]
        while len(self._seen) > 1 and self._seen[1][0] < now - WINDOW_S - 1:
            self._seen.popleft()
        return max(count for _, count in self._seen)
