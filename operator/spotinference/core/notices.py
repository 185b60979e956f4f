"""From what a node shows to one `Notice`: whether it goes, by when, and how sure that is.

Called by the observer for every node that carries an engine pod. A sign that states its own time is
believed; one that does not is taken to have begun when it was first seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from spotinference.api import times
from spotinference.api.kinds import Json
from spotinference.core.observed import Confidence, NodeEvent, Notice
from spotinference.core.providers import Provider, Shown, Sign, signs_of

HINT_S = 1800.0
"""A rebalance hint without an end of its own is believed this long: machines were seen to live on
for hours after one."""
EVENT_GRACE_S = 60.0
"""An event cannot be taken back. A node that is still there this long after the deadline of an
event was not taken, and may be used again."""

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)")
_RFC1123 = re.compile(r"[A-Z][a-z]{2}, (\d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d) (?:GMT|UTC)")


@dataclass(frozen=True, slots=True)
class Sighting:
    """One sign that stands on a node now."""

    source: str
    confidence: Confidence
    stated: datetime | None = None
    """the end that the sign itself names"""
    begun: datetime | None = None
    """when it began, by the sign itself"""


@dataclass(frozen=True, slots=True)
class Signals:
    """Everything that may show a notice."""

    node: Json
    events: tuple[NodeEvent, ...] = ()
    """about this very node, since it was made"""


def sightings(
    signals: Signals, provider: Provider, notice_seconds: int, now: datetime
) -> tuple[Sighting, ...]:
    """Every sign of the provider's table that the node shows, in the order of the table."""
    node, cordoned = signals.node, False
    found: list[Sighting] = []
    for sign in signs_of(node, provider):
        match sign.shown:
            case Shown.TAINT:
                found += _taint(node, sign)
            case Shown.ANNOTATION:
                found += _annotation(node, sign)
            case Shown.LABEL:
                found += _label(node, sign)
            case Shown.CONDITION:
                found += _condition(node, sign)
            case Shown.NOT_READY:
                found += _not_ready(node, sign)
            case Shown.EVENT:
                found += _event(signals.events, sign, notice_seconds, now)
            case Shown.CORDON:
                cordoned = bool(node.get("spec", {}).get("unschedulable"))
    # Whoever hangs a hint on a node cordons it as well: such a cordon is no more than the hint.
    if cordoned and not found:
        found.append(Sighting("cordon", Confidence.FIRM))
    return tuple(found)


def notices(
    name: str,
    found: Sequence[Sighting],
    first_seen: Mapping[str, datetime],
    notice_seconds: int,
) -> tuple[Notice | None, Notice | None]:
    """(firm, weak): what a node's signs come to; a weak one only where there is no firm one.

    `first_seen`: by source, when we first saw each sign on this node. Of several firm signs the
    end that one of them states wins over any that is only assumed; of those the earliest.
    """
    firm = [s for s in found if s.confidence is Confidence.FIRM]
    if firm:
        length = timedelta(seconds=notice_seconds)
        stated = [s.stated for s in firm if s.stated is not None]
        ends = stated or [(s.begun or first_seen[s.source]) + length for s in firm]
        return Notice(name, firm[0].source, min(ends)), None
    if found:
        weak = found[0]
        end = weak.stated or (weak.begun or first_seen[weak.source]) + timedelta(seconds=HINT_S)
        return None, Notice(name, weak.source, end, Confidence.WEAK)
    return None, None


def time_in(text: str) -> datetime | None:
    """The first time that a message names, as RFC 3339 or RFC 1123 (Azure's `NotBefore`)."""
    if found := _RFC3339.search(text):
        return _time(found.group())
    if found := _RFC1123.search(text):
        try:
            at = datetime.strptime(found.group(1), "%d %b %Y %H:%M:%S")  # noqa: DTZ007  # UTC below
        except ValueError:
            return None
        return at.replace(tzinfo=UTC)
    return None


# --- one kind of sign each ------------------------------------------------------------------------


def _taint(node: Json, sign: Sign) -> list[Sighting]:
    return [
        Sighting(f"taint {sign.key}", sign.confidence, begun=_time(taint.get("timeAdded")))
        for taint in node.get("spec", {}).get("taints") or ()
        if taint.get("key") == sign.key
    ][:1]


def _annotation(node: Json, sign: Sign) -> list[Sighting]:
    annotations = node.get("metadata", {}).get("annotations") or {}
    if sign.key not in annotations:
        return []
    source = f"annotation {sign.key}"
    return [Sighting(source, sign.confidence, stated=_time(annotations[sign.key]))]


def _label(node: Json, sign: Sign) -> list[Sighting]:
    value = (node.get("metadata", {}).get("labels") or {}).get(sign.key)
    if value is None or (sign.value is not None and value != sign.value):
        return []
    return [Sighting(f"label {sign.key}={value}", sign.confidence)]


def _condition(node: Json, sign: Sign) -> list[Sighting]:
    found = condition(node, sign.key)
    if found is None or found.get("status") != "True":
        return []
    if sign.value is not None and found.get("reason") != sign.value:
        return []
    return [
        Sighting(
            f"condition {sign.key}",
            sign.confidence,
            stated=time_in(str(found.get("message", ""))),
            begun=_time(found.get("lastTransitionTime")),
        )
    ]


def _not_ready(node: Json, sign: Sign) -> list[Sighting]:
    ready = condition(node, "Ready")
    if ready is None or ready.get("status") == "True":
        return []
    message = str(ready.get("message", ""))
    if sign.key not in message:
        return []
    begun = _time(ready.get("lastTransitionTime"))
    return [Sighting(f"Ready=False: {message}", sign.confidence, begun=begun)]


def _event(
    events: Iterable[NodeEvent], sign: Sign, notice_seconds: int, now: datetime
) -> list[Sighting]:
    """An event while it is believed: a firm one from its first, a hint from its last occurrence."""
    firm = sign.confidence is Confidence.FIRM
    believed = timedelta(seconds=notice_seconds + EVENT_GRACE_S if firm else HINT_S)
    begun = max(
        (e.first_at if firm else e.last_at for e in events if e.reason == sign.key), default=None
    )
    if begun is None or now >= begun + believed:
        return []
    return [Sighting(f"event {sign.key}", sign.confidence, begun=begun)]


def condition(node: Json, kind: str) -> Json | None:
    """A condition of a node by its type."""
    conditions: list[Json] = node.get("status", {}).get("conditions") or []
    return next((c for c in conditions if c.get("type") == kind), None)


def _time(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        return times.parse(text)
    except ValueError:
        return None
