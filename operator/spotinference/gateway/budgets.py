"""Tokens that keys used this month, over all gateways: summed up in one ConfigMap.

Each gateway adds what its requests used every few seconds, under the object's resourceVersion, and
learns what the others added. A key may thus exceed its budget by what all gateways use within two
such intervals, and a gateway that is killed forgets at most one. Only keys with a budget are kept.
Without a namespace of its own (outside a cluster) the count is this process's own.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from typing import Protocol

import structlog

from spotinference import errors
from spotinference.api.kinds import CONFIG_MAP, Json, Kind
from spotinference.clients.clock import Clock

log = structlog.get_logger(__name__)

NAME = "spotinference-token-budgets"
FLUSH_ATTEMPTS = 5
MAX_FLUSHES = 64
"""Gateways whose last flush is remembered: by it a write whose answer was lost is recognized."""


class Store(Protocol):
    """What `clients.kube.Kube` has."""

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Json: ...

    async def create(self, kind: Kind, body: Json) -> Json: ...

    async def merge_patch(
        self, kind: Kind, name: str, namespace: str | None, patch: Json
    ) -> Json: ...


class Budgets:
    def __init__(
        self, clock: Clock, gateway_id: str, store: Store | None = None, namespace: str = ""
    ) -> None:
        self._clock = clock
        self._id = gateway_id
        self._store = store
        self._namespace = namespace
        self._month = self._now()
        self._total: dict[str, int] = {}
        """as last read"""
        self._own: dict[str, int] = {}
        """not written yet"""
        self._asked = True
        """somebody wanted to know since the last exchange: without, there is nothing to read"""
        self._flushing: tuple[str, dict[str, int]] | None = None
        """id and content of a write that may or may not have been made"""

    def spent(self, key_id: str) -> int:
        self._turn()
        self._asked = True
        flushing = self._flushing[1].get(key_id, 0) if self._flushing else 0
        return self._total.get(key_id, 0) + self._own.get(key_id, 0) + flushing

    def add(self, key_id: str, tokens: int) -> None:
        self._turn()
        self._own[key_id] = self._own.get(key_id, 0) + tokens

    async def follow(self, interval_s: float) -> None:
        """Reads and writes every so often; runs until cancelled."""
        while True:
            await self.exchange()
            await asyncio.sleep(interval_s)

    async def exchange(self) -> None:
        """Writes what this gateway used, reads what all did. What fails is tried the next time."""
        if self._store is None or not (self._asked or self._own or self._flushing):
            return
        self._asked = False
        for _ in range(FLUSH_ATTEMPTS):
            try:
                await self._exchange(self._store)
            except errors.Conflict:
                continue
            except errors.SpotinferenceError as error:
                log.warning("budgets.not_written", error=str(error))
            return

    async def _exchange(self, store: Store) -> None:
        self._turn()
        try:
            found: Json | None = await store.get(CONFIG_MAP, NAME, self._namespace)
        except errors.NotFound:
            found = None
        months: dict[str, str] = (found or {}).get("data") or {}
        stored, flushes = _decoded(months.get(self._month))
        if self._flushing is not None and flushes.get(self._id) == self._flushing[0]:
            self._flushing = None  # it was made, only its answer was lost
        if self._flushing is None and self._own:
            self._flushing, self._own = (secrets.token_hex(8), self._own), {}
        self._total = stored
        if self._flushing is None:
            return
        flush, added = self._flushing
        tokens = _sum(stored, added)
        flushes.pop(self._id, None)
        flushes = dict([*flushes.items(), (self._id, flush)][-MAX_FLUSHES:])
        text = json.dumps({"tokens": tokens, "flushes": flushes})
        older = {month: None for month in sorted(months) if month < self._month}
        await self._write(store, found, {**older, self._month: text})
        if self._flushing is not None and self._flushing[0] == flush:
            self._total, self._flushing = tokens, None

    async def _write(
        self, store: Store, found: Json | None, data: Mapping[str, str | None]
    ) -> None:
        if found is None:
            meta = {"name": NAME, "namespace": self._namespace}
            fresh = {month: text for month, text in data.items() if text is not None}
            body: Json = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": fresh}
            await store.create(CONFIG_MAP, body)
            return
        version = found["metadata"]["resourceVersion"]
        patch: Json = {"metadata": {"resourceVersion": version}, "data": dict(data)}
        await store.merge_patch(CONFIG_MAP, NAME, self._namespace, patch)

    def _now(self) -> str:
        now = self._clock.now()
        return f"{now.year:04}-{now.month:02}"

    def _turn(self) -> None:
        """A new month begins with nothing used."""
        if (month := self._now()) != self._month:
            self._month, self._total, self._own, self._flushing = month, {}, {}, None


def _decoded(text: str | None) -> tuple[dict[str, int], dict[str, str]]:
    """Tokens by key, and the last flush of each gateway."""
    if text is None:
        return {}, {}
    try:
        stored = json.loads(text)
        tokens = {key: _whole(count) for key, count in dict(stored["tokens"]).items()}
        return tokens, dict(stored["flushes"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        # A person broke it: counting on from nothing would hand out the month's tokens anew.
        raise errors.ConfigInvalid(
            f"ConfigMap {NAME}: not readable ({error}); mend or delete it."
        ) from error


def _whole(count: object) -> int:
    if not isinstance(count, int):
        raise TypeError(f"{count!r} is no number of tokens")
    return count


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}
