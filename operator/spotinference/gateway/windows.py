"""The context window of each tier: as its spec states it, else as its engine tells it.

The operator asks the engine and keeps the answer in the tier's status, also while the tier sleeps.
Where it is not there (the replica has just become ready, the operator is down), an engine is asked
when somebody lists models, once for each fingerprint, and the answer is remembered until the status
has one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from spotinference.core.observed import TierRef
from spotinference.gateway.catalogue import Tier
from spotinference.gateway.engines import Engines, Failed, Lost
from spotinference.gateway.replicas import Replica, Replicas


class Windows:
    def __init__(self, replicas: Replicas, engines: Engines) -> None:
        self._replicas = replicas
        self._engines = engines
        self._told: dict[TierRef, tuple[str, int]] = {}
        """the fingerprint of who told it, and tokens"""

    def of(self, tier: Tier) -> int | None:
        """Tokens of prompt and answer together; None: nobody has told yet."""
        known = _known(tier)
        if known is not None:
            return known
        _, told = self._told.get(tier.ref, (None, None))
        return told

    async def learn(self, tiers: Iterable[Tier]) -> None:
        """Asks the engines of those that are awake and whose window is not known; within the
        deadline of a question to an engine.
        """
        await asyncio.gather(
            *[self._ask(replica) for tier in tiers if (replica := self._to_ask(tier)) is not None]
        )

    def changed(self, ref: TierRef, tier: Tier | None) -> None:
        """What an engine told this process does not outlive the tier, or better knowledge of it."""
        if tier is None or _known(tier) is not None:
            self._told.pop(ref, None)

    def _to_ask(self, tier: Tier) -> Replica | None:
        if _known(tier) is not None:
            return None
        known, _ = self._told.get(tier.ref, (None, None))
        able = [replica for replica in self._replicas.of(tier.ref) if replica.routable]
        if any(replica.fingerprint == known for replica in able):
            return None
        return able[0] if able else None

    async def _ask(self, replica: Replica) -> None:
        with contextlib.suppress(Lost, Failed):  # asked again when models are listed next
            tokens = await self._engines.max_model_len(replica)
            self._told[replica.tier] = (replica.fingerprint, tokens)


def _known(tier: Tier) -> int | None:
    """Without asking: from the tier's spec or status."""
    stated = tier.spec.engine.max_model_len
    return stated if stated is not None else tier.context_window
