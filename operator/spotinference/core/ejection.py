"""When a replica is taken out of routing, for how long, and how many retries a tier bears.

The circuit of a replica: *closed* (it gets work), *open* (ejected, probed after a pause that
doubles), *half open* (readmitted: one more failure opens it again, one answer closes it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

STRIKES = 3
"""Failures in a row that open the circuit: one may be the request's own fault."""


def may_eject(ready: int, ejected: int) -> bool:
    """Whether one more of a tier's replicas may go because of its answers.

    At least half stay: when most answer wrongly the fault is elsewhere, and a request is better
    told what its replica says than parked until the cap. (A replica that refuses connections is
    another matter: nobody is there to be asked.)
    """
    return (ejected + 1) * 2 <= ready


def opens(strikes: int, ready: int, ejected: int) -> bool:
    """Whether so many failures in a row take a replica out."""
    return strikes >= STRIKES and may_eject(ready, ejected)


def pause_s(times: int, first_s: float, most_s: float, luck: float) -> float:
    """The pause before a replica that was ejected so many times in a row is probed.

    `luck` in [0, 1) spreads gateways that saw the same failure; the pause is never below half.
    """
    doubled: float = first_s * 2.0 ** min(times - 1, 32)
    return min(doubled, most_s) * (1 - luck / 2)


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """What retries a tier has left: a share of its requests, and a trickle for quiet times."""

    share: float
    """earned per request"""
    per_s: float
    """earned per second"""
    most: float
    balance: float
    at: float
    """when the balance was right, in the caller's monotonic seconds"""

    def asked(self) -> RetryBudget:
        """With one more request; at the most it is what it was, as it is nearly always."""
        if self.balance >= self.most:
            return self
        return replace(self, balance=min(self.most, self.balance + self.share))

    def retried(self, now: float) -> RetryBudget | None:
        """With one more retry; None when none is left."""
        balance = min(self.most, self.balance + (now - self.at) * self.per_s)
        if balance < 1:
            return None
        return replace(self, balance=balance - 1, at=now)
