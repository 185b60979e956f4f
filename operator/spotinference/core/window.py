"""The context window that a tier's engine reports: kept in the status for as long as a new replica
would be started with the same image and arguments, so that it is known while the tier sleeps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

from spotinference.api.tier_status import EngineStatus
from spotinference.core import engine_args
from spotinference.core.fingerprint import flags
from spotinference.core.fleet import Fleet
from spotinference.core.observed import Observed

_NO_MATTER = frozenset({"host", "port", "served-model-name", "shutdown-timeout"})
"""Ours: where the engine listens, how it is called, how it ends."""


def arguments_hash(args: Sequence[str]) -> str:
    """Equal for engines that have the same context window. `args` as in a pod: the model, then flags.

    Their image is left out: a registry mirror may have written another one into the pod.
    """
    return _arguments_hash(tuple(args))


@lru_cache(maxsize=4096)
def _arguments_hash(args: tuple[str, ...]) -> str:
    model = args[0] if args and not args[0].startswith("--") else ""
    return _digest([model, *(words for name, words in flags(args) if name not in _NO_MATTER)])


def engine_of(observed: Observed, fleet: Fleet, revision: str | None) -> EngineStatus | None:
    """What the newest ready replica told; else what is known, unless image or arguments changed."""
    arguments = arguments_hash(engine_args.argv(observed.ref.name, observed.spec, revision))
    spec_hash = _digest([observed.spec.engine.image, arguments])
    told = [
        (view.created_at, view.window.tokens)
        for view in (replica.view for replica in fleet.ready)
        if view.window is not None and view.window.arguments == arguments
    ]
    if told:
        return EngineStatus(context_window=max(told)[1], spec_hash=spec_hash)
    before = observed.status.engine
    return before if before is not None and before.spec_hash == spec_hash else None


def _digest(words: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
