"""Limits of keys: a request is admitted here before it may wait, wake a GPU or reach an engine.

Tokens are reserved by an estimate and settled by what was used. The arithmetic is in
`core.limits`; months are kept by `budgets`; how many gateways share a limit is `peers`' to know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import timedelta

from spotinference.api import times
from spotinference.api.keys import ApiKey
from spotinference.clients.clock import Clock
from spotinference.core.limits import WINDOW_S, Processes, Window, share
from spotinference.core.routing import Work
from spotinference.gateway.budgets import Budgets
from spotinference.gateway.errors import Code, GatewayError
from spotinference.gateway.metrics import Metrics

MAX_KEYS = 20_000
"""Twice what a keys file may hold; beyond it the state of keys that are idle is dropped."""
BYTES_PER_TOKEN = 4
"""English text; what an estimate is wrong by is settled when the answer ends."""
DEFAULT_COMPLETION_TOKENS = 256
"""Reserved where the request names no maximum."""


@dataclass(slots=True)
class _Use:
    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    streams: int = 0
    reserved: int = 0
    """tokens of requests that are not settled"""

    def idle(self, now: float) -> bool:
        return not (self.streams or self.requests.used(now) or self.tokens.used(now))


class Grant:
    """One admitted request; `settle` exactly once, whatever became of it."""

    __slots__ = ("_at", "_key", "_limits", "_tokens", "_use")

    def __init__(self, limits: Limits, key: ApiKey, use: _Use, at: float, tokens: int) -> None:
        self._limits = limits
        self._key = key
        self._use = use
        self._at = at
        self._tokens = tokens

    def settle(self, tokens: int) -> None:
        """`tokens`: prompt and completion together, as used."""
        self._use.streams -= 1
        self._use.reserved -= self._tokens
        self._limits.settled(self._key, self._use, self._at, tokens - self._tokens, tokens)


class Limits:
    def __init__(
        self, clock: Clock, processes: Processes, budgets: Budgets, metrics: Metrics
    ) -> None:
        self._clock = clock
        self._processes = processes
        self._budgets = budgets
        self._metrics = metrics
        self._uses: dict[str, _Use] = {}

    def admit(self, key: ApiKey, estimate: int) -> Grant:
        """`rate_limit_exceeded` or `budget_exceeded`; a refused request counts as no use."""
        now = self._clock.monotonic()
        use = self._use(key, now)
        self._check_budget(key, use)
        allowed = self._allowed(key.max_streams, now)
        if allowed is not None and use.streams >= allowed:
            raise self._exceeded(key, "streams", f"max_streams is {key.max_streams}", 1)
        allowed = self._allowed(key.requests_per_minute, now)
        if allowed is not None and use.requests.used(now) >= allowed:
            raise self._exceeded(
                key, "requests", f"requests_per_minute is {key.requests_per_minute}",
                use.requests.wait_s(now, allowed, 1),
            )  # fmt: skip
        allowed = self._allowed(key.tokens_per_minute, now)
        if allowed is not None:
            needed = min(estimate, allowed)  # more than fits at all: alone in its minute
            if use.tokens.used(now) + needed > allowed:
                raise self._exceeded(
                    key, "tokens",
                    f"tokens_per_minute is {key.tokens_per_minute}, about {estimate} are needed",
                    use.tokens.wait_s(now, allowed, needed),
                )  # fmt: skip
            estimate = needed
        use.requests.add(now, 1)
        use.tokens.add(now, estimate)
        use.streams += 1
        use.reserved += estimate
        return Grant(self, key, use, now, estimate)

    def settled(self, key: ApiKey, use: _Use, at: float, correction: int, tokens: int) -> None:
        use.tokens.correct(self._clock.monotonic(), at, correction)
        if key.monthly_tokens is not None and tokens:
            self._budgets.add(key.id, tokens)

    def headers(self, key: ApiKey) -> dict[str, str]:
        """`x-ratelimit-*` as OpenAI's: the limit, what this gateway would still admit, and when
        all of it is free again.
        """
        out: dict[str, str] = {}
        if key.requests_per_minute is None and key.tokens_per_minute is None:
            return out
        now = self._clock.monotonic()
        use = self._uses.get(key.id) or _Use()
        for name, limit, window in (
            ("requests", key.requests_per_minute, use.requests),
            ("tokens", key.tokens_per_minute, use.tokens),
        ):
            allowed = self._allowed(limit, now)
            if allowed is not None:
                out[f"x-ratelimit-limit-{name}"] = str(limit)
                out[f"x-ratelimit-remaining-{name}"] = str(max(0, allowed - window.used(now)))
                out[f"x-ratelimit-reset-{name}"] = f"{math.ceil(window.reset_s(now))}s"
        return out

    def _allowed(self, limit: int | None, now: float) -> int | None:
        if limit is None:
            return None
        processes = self._processes
        return share(limit, processes.count(now), newcomer=processes.newcomer(now))

    def _use(self, key: ApiKey, now: float) -> _Use:
        use = self._uses.get(key.id)
        if use is None:
            if len(self._uses) >= MAX_KEYS:
                self._uses = {k: u for k, u in self._uses.items() if not u.idle(now)}
            use = self._uses[key.id] = _Use()
        return use

    def _check_budget(self, key: ApiKey, use: _Use) -> None:
        if key.monthly_tokens is None:
            return
        if self._budgets.spent(key.id) + use.reserved >= key.monthly_tokens:
            self._metrics.limited.labels("budget").inc()
            now = self._clock.now()
            turn = (now.replace(day=1) + timedelta(days=32)).replace(
                day=1, hour=0, minute=0, second=0, microsecond=0
            )
            raise GatewayError(
                Code.BUDGET_EXCEEDED,
                f"The key {key.id!r} has used its {key.monthly_tokens} tokens of this month "
                f"(monthly_tokens), which ends at {times.to_text(turn)}. "
                "Ask an administrator for more.",
                retry_after_s=math.ceil((turn - now).total_seconds()),
            )

    def _exceeded(self, key: ApiKey, what: str, which: str, wait_s: float) -> GatewayError:
        self._metrics.limited.labels(what).inc()
        return GatewayError(
            Code.RATE_LIMIT_EXCEEDED,
            f"The key {key.id!r} is at its limit: {which}.",
            retry_after_s=min(WINDOW_S + 1, max(1, math.ceil(wait_s))),
        )


def estimate(work: Work, body_bytes: int, *, completes: bool, window: int | None) -> int:
    """Tokens that a request may take: its bytes as text, and the most that it may generate.

    `window`: no answer is longer than the model's context, whatever limit the client names; a
    larger one would block all else that the key may use until it ends.
    """
    prompt = max(1, body_bytes // BYTES_PER_TOKEN)
    if not completes:
        return prompt
    if work.max_tokens is None:
        return prompt + DEFAULT_COMPLETION_TOKENS * work.choices
    most = work.max_tokens if window is None else min(work.max_tokens, window * work.choices)
    return prompt + most
