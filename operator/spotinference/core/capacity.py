"""What one replica can serve, learned from what replicas served while they were busy.

Requests served divided by the replica-seconds of work they took. Work is counted by how full a
replica was (requests in flight against those of a full one), so an idle tier teaches nothing and
a full one most. Tokens are counted beside requests: when answers grow longer the token rate still
holds while the request rate does not yet know. Called by `core.sizing`.
"""

from __future__ import annotations

from dataclasses import dataclass

MEMORY_BUSY_S = 3600.0
"""Replica-seconds of work after which an observation has lost half its weight, for the rates."""
MIX_BUSY_S = 600.0
"""The same for tokens per request, which change faster than what a GPU can do."""
ENOUGH_BUSY_S = 30.0
"""Less work than this teaches no rate."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Decayed sums; rates are their quotients."""

    busy_s: float = 0.0
    requests: float = 0.0
    tokens: float = 0.0
    mix_requests: float = 0.0
    mix_tokens: float = 0.0

    @property
    def known(self) -> bool:
        return self.busy_s >= ENOUGH_BUSY_S and self.requests > 0

    @property
    def requests_per_s(self) -> float:
        """Of one full replica with today's mix of requests: the lesser of what both counts say."""
        by_requests = self.requests / self.busy_s
        if self.tokens <= 0 or self.mix_tokens <= 0:
            return by_requests
        tokens_per_s = self.tokens / self.busy_s
        return min(by_requests, tokens_per_s * self.mix_requests / self.mix_tokens)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens of one full replica."""
        return self.tokens / self.busy_s if self.busy_s > 0 else 0.0


def observe(state: Capacity, busy_s: float, requests: float, tokens: float) -> Capacity:
    """After replicas were busy for `busy_s` and finished so many requests and output tokens."""
    if busy_s <= 0:
        return state
    keep = 0.5 ** (busy_s / MEMORY_BUSY_S)
    mix = 0.5 ** (busy_s / MIX_BUSY_S)
    return Capacity(
        busy_s=keep * state.busy_s + busy_s,
        requests=keep * state.requests + requests,
        tokens=keep * state.tokens + tokens,
        mix_requests=mix * state.mix_requests + requests,
        mix_tokens=mix * state.mix_tokens + tokens,
    )
