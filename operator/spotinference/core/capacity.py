"""What one full replica can serve, learned from what replicas served at whatever load they had.

An engine's throughput grows with its batch, but ever less: at b requests in flight a token takes
about t0 + t1 x b, so b / (t0 + t1 x b) tokens come per second. With fullness u (requests in flight
against those of a full replica) that is a straight line, u / rate = a + c x u, fitted by least
squares over decayed sums; the capacity is the rate at u = 1. Where nothing but one load was seen
the line is flat, which is optimistic, and the next higher load corrects it.

The fit is over output tokens, turned into requests by the newest mix of tokens per request, so that
longer answers are noticed at once; over requests where no tokens are counted. Called by
`core.sizing`; pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MEMORY_BUSY_S = 40_000.0
"""Replica-seconds of work after which an observation has lost half its weight in the fit."""
MIX_BUSY_S = 600.0
"""The same for tokens per request, which change faster than what a GPU can do."""
ENOUGH_BUSY_S = 30.0
"""Less work than this teaches nothing."""
FLAT = 0.01
"""Variance of fullness that is taken for none: a line through one point has any slope."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One reading: replicas were full by `busy_s` out of `up_s` seconds, and finished this."""

    busy_s: float
    up_s: float
    requests: float
    tokens: float


@dataclass(frozen=True, slots=True)
class Line:
    """Decayed sums, weighted by work: of u, of u squared, of u / rate, and of u x u / rate."""

    weight: float = 0.0
    u: float = 0.0
    uu: float = 0.0
    y: float = 0.0
    uy: float = 0.0

    @property
    def rate(self) -> float:
        """Units per second of a full replica; 0: unknown."""
        if self.weight <= 0:
            return 0.0
        u, y = self.u / self.weight, self.y / self.weight
        variance = self.uu / self.weight - u * u
        slope = (self.uy / self.weight - u * y) / (variance + FLAT)
        # Throughput per request in flight never grows with the batch, and at most halves.
        full = min(max(y + max(0.0, slope) * (1 - u), y), 2 * y)
        return 1 / full if full > 0 else 0.0

    def after(self, seen: Seen, units: float, memory_s: float = MEMORY_BUSY_S) -> Line:
        """`units` (requests or tokens) finished in one reading."""
        if units <= 0:
            return self
        w, u = seen.busy_s, min(1.0, seen.busy_s / seen.up_s)
        y = seen.busy_s / units
        keep = 0.5 ** (w / memory_s)
        return Line(
            keep * self.weight + w,
            keep * self.u + w * u,
            keep * self.uu + w * u * u,
            keep * self.y + w * y,
            keep * self.uy + w * u * y,
        )

    def scaled(self, k: float) -> Line:
        """As if all fullnesses had been k times as high (and with them the work)."""
        return Line(k * self.weight, k**2 * self.u, k**3 * self.uu, k**2 * self.y, k**3 * self.uy)


@dataclass(frozen=True, slots=True)
class Capacity:
    """All that is remembered."""

    by_requests: Line = Line()
    by_tokens: Line = Line()
    mix_requests: float = 0.0
    mix_tokens: float = 0.0

    @property
    def known(self) -> bool:
        return self.by_requests.weight >= ENOUGH_BUSY_S and self.requests_per_s > 0

    @property
    def requests_per_s(self) -> float:
        """Of one full replica, with the newest mix of requests."""
        if self.mix_tokens > 0 and self.by_tokens.weight >= ENOUGH_BUSY_S:
            return self.by_tokens.rate * self.mix_requests / self.mix_tokens
        return self.by_requests.rate

    @property
    def tokens_per_s(self) -> float:
        """Output tokens of one full replica; 0: unknown."""
        return self.by_tokens.rate


def rescaled(state: Capacity, k: float) -> Capacity:
    """After what is called full was divided by k."""
    return replace(
        state, by_requests=state.by_requests.scaled(k), by_tokens=state.by_tokens.scaled(k)
    )


def observe(state: Capacity, seen: Seen) -> Capacity:
    """After one more reading."""
    if seen.busy_s <= 0 or seen.up_s <= 0:
        return state
    mix = 0.5 ** (seen.busy_s / MIX_BUSY_S)
    return Capacity(
        by_requests=state.by_requests.after(seen, seen.requests),
        by_tokens=state.by_tokens.after(seen, seen.tokens),
        mix_requests=mix * state.mix_requests + seen.requests,
        mix_tokens=mix * state.mix_tokens + seen.tokens,
    )
