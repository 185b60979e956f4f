"""What this gateway has learned of each tier: how fast it answers, how many retries it bears.

In memory only: a new gateway starts with the ceilings of the settings and learns within a few
answers.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from spotinference.core import deadlines
from spotinference.core.deadlines import Bounds, Deadlines, Speed
from spotinference.core.ejection import RetryBudget
from spotinference.core.observed import TierRef
from spotinference.core.routing import USUAL_ANSWER_TOKENS, Work
from spotinference.gateway.config import GatewaySettings


@dataclass(slots=True)
class _Vital:
    speed: Speed
    budget: RetryBudget


class Vitals:
    """By tier; `forget` when one is deleted."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._bounds = Bounds(
            first_floor_s=settings.first_byte_floor_s,
            first_ceiling_s=settings.first_byte_timeout_s,
            next_floor_s=settings.next_byte_floor_s,
            next_ceiling_s=settings.next_byte_timeout_s,
            total_floor_s=settings.answer_floor_s,
            total_ceiling_s=settings.answer_timeout_s,
        )
        self.soonest_s = min(
            settings.first_byte_floor_s, settings.first_byte_timeout_s, settings.answer_floor_s,
            settings.answer_timeout_s,
        )  # fmt: skip
        """No deadline but the one between two bytes is ever shorter."""
        self.patience_s = settings.answer_floor_s
        """An answer that is overdue while its client does not read gets this much longer."""
        self._tiers: dict[TierRef, _Vital] = {}

    def forget(self, ref: TierRef) -> None:
        self._tiers.pop(ref, None)

    def speed(self, ref: TierRef) -> Speed:
        vital = self._tiers.get(ref)
        return vital.speed if vital is not None else Speed()

    def usual_answer_tokens(self, ref: TierRef) -> int:
        usual = self.speed(ref).answer_tokens
        return USUAL_ANSWER_TOKENS if usual is None else max(1, round(usual))

    def deadlines(self, ref: TierRef, work: Work) -> Deadlines:
        """For one request, by the speed as it is known now."""
        return deadlines.deadlines(
            work.prompt_tokens, work.max_tokens, self.speed(ref), self._bounds
        )

    def next_s(self, ref: TierRef) -> float:
        """Between two bytes."""
        return deadlines.next_s(self.speed(ref), self._bounds)

    def first(self, ref: TierRef, work: Work, took_s: float) -> None:
        """A first byte came after so long, or had not come by then."""
        vital = self._of(ref)
        vital.speed = deadlines.after_first(vital.speed, work.prompt_tokens, took_s)

    def answered(self, ref: TierRef, reads: int, took_s: float) -> None:
        """A streamed answer came to its end."""
        vital = self._of(ref)
        vital.speed = deadlines.after_answer(vital.speed, reads, took_s)

    def asked(self, ref: TierRef) -> None:
        """A request came: it earns its share of a retry."""
        vital = self._of(ref)
        vital.budget = vital.budget.asked()

    def may_retry(self, ref: TierRef) -> bool:
        """Takes one retry out of the tier's budget; False when it is spent."""
        vital = self._of(ref)
        left = vital.budget.retried(asyncio.get_running_loop().time())
        if left is not None:
            vital.budget = left
        return left is not None

    def _of(self, ref: TierRef) -> _Vital:
        vital = self._tiers.get(ref)
        if vital is None:
            settings = self._settings
            most = settings.retry_reserve_s * settings.retries_per_s
            vital = self._tiers[ref] = _Vital(
                Speed(),
                RetryBudget(
                    share=settings.retry_share,
                    per_s=settings.retries_per_s,
                    most=most,
                    balance=most,
                    at=asyncio.get_running_loop().time(),
                ),
            )
        return vital
