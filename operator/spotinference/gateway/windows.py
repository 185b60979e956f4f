"""The context window of each tier: as its spec states it, else as its engine tells it.

An engine is asked when somebody lists models, once for each fingerprint; what it told is remembered
while the tier sleeps, as long as this process runs.
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
        stated = tier.spec.engine.max_model_len
        if stated is not None:
            return stated
        _, told = self._told.get(tier.ref, (None, None))
        return told

    async def learn(self, tiers: Iterable[Tier]) -> None:
        """Asks the engines of those that are awake and whose window is not known; within the
        deadline of a question to an engine.
        """
        await asyncio.gather(
            *[self._ask(replica) for tier in tiers if (replica := self._to_ask(tier)) is not None]
        )

    def forget(self, ref: TierRef) -> None:
        self._told.pop(ref, None)

    def _to_ask(self, tier: Tier) -> Replica | None:
        if tier.spec.engine.max_model_len is not None:
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
