"""Times on the wire: RFC 3339 in UTC. No clock here; `clients.clock` reads one."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache


def to_text(at: datetime) -> str:
    """RFC 3339 with whole seconds, as Kubernetes writes metav1.Time."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def to_micro_text(at: datetime) -> str:
    """RFC 3339 with microseconds, as Kubernetes writes metav1.MicroTime (Leases)."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


@lru_cache(maxsize=4096)
def parse(text: str) -> datetime:
    """An aware UTC datetime; ValueError when the text is not RFC 3339, or no time of our calendar."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except OverflowError as error:  # its offset leads out of the years 1 to 9999
        raise ValueError(f"{text!r} is beyond all years") from error
