"""Events about nodes: Karpenter's rebalance hints, and some notices, show nowhere else.

One narrow watch per reason of the table, filtered by the API server: Node events of that reason, in
the namespace where events about cluster-scoped objects live. The same events about NodeClaims say
nothing more. Kept is one occurrence per node and reason; the API server forgets events after an
hour, we when something newer needs the place.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime

import structlog

from spotinference import errors
from spotinference.api import times
from spotinference.api.kinds import EVENT, Json
from spotinference.clients.kube import WATCH_TIMEOUT_S, Kube
from spotinference.clients.reflector import Reflector
from spotinference.core.observed import NodeEvent
from spotinference.core.providers import EVENT_REASONS

log = structlog.get_logger(__name__)

NAMESPACE = "default"
MAX_REMEMBERED = 10_000
FORBIDDEN_RETRY_S = 300.0
SILENCE_S = WATCH_TIMEOUT_S + 30.0
"""The API server sends no bookmarks for events: only its own time-out ends a quiet watch."""


class NodeEvents:
    def __init__(self, kube: Kube, on_change: Callable[[str], None]) -> None:
        self._kube = kube
        self._on_change = on_change
        self._newest: OrderedDict[tuple[str, str], tuple[str, NodeEvent]] = OrderedDict()
        """(node, reason) to (uid of the node, event)"""

    def of(self, node: Json) -> tuple[NodeEvent, ...]:
        """What was said about this very node, not about an earlier one of its name."""
        meta = node["metadata"]
        made = _time(meta.get("creationTimestamp"))
        found = []
        for reason in EVENT_REASONS:
            uid, event = self._newest.get((meta["name"], reason), ("", None))
            # The node problem detector writes the node's name where its uid belongs.
            if event is None or uid not in {"", meta["uid"], meta["name"]}:
                continue
            if made is None or event.last_at >= made:
                found.append(event)
        return tuple(found)

    def saw(self, body: Json) -> None:
        """Keeps what a watch shows."""
        about, reason = body.get("involvedObject") or {}, body.get("reason")
        name = about.get("name")
        ats = [_time(body.get(key)) for key in ("firstTimestamp", "eventTime", "lastTimestamp")]
        ats += [_time((body.get("series") or {}).get("lastObservedTime"))]
        known = [at for at in ats if at is not None]
        if not known and (made := _time(body["metadata"].get("creationTimestamp"))) is not None:
            known = [made]
        if about.get("kind") != "Node" or not name or reason not in EVENT_REASONS or not known:
            return
        event = NodeEvent(reason, first_at=min(known), last_at=max(known))
        before = self._newest.get((name, reason))
        if before is not None and before[1].last_at > event.last_at:
            return
        self._newest[name, reason] = (str(about.get("uid") or ""), event)
        self._newest.move_to_end((name, reason))
        if len(self._newest) > MAX_REMEMBERED:
            self._newest.popitem(last=False)
        self._on_change(name)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reason in EVENT_REASONS:
                group.create_task(self._watch(reason), name=f"events-{reason}")

    async def _watch(self, reason: str) -> None:
        while True:
            watch = Reflector(
                self._kube,
                EVENT,
                namespace=NAMESPACE,
                field_selector=f"involvedObject.kind=Node,reason={reason}",
                on_change=lambda _, after: None if after is None else self.saw(after),
                silence_s=SILENCE_S,
            )
            try:
                await watch.run()
            except errors.InvalidInput as error:
                # Taken away while we run: the other signs still count.
                log.error("events.unreadable", reason=reason, error=str(error))  # noqa: TRY400
                await asyncio.sleep(FORBIDDEN_RETRY_S)


def _time(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        return times.parse(text)
    except ValueError:
        return None
