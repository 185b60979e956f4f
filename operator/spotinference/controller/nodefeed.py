"""Nodes, watched by our own reflector instead of Kopf: when fifty of them get a notice at once, each tier
waits for one thread, and what Kopf does for an event (a task and a queue for each object, bodies and
patches for handlers that we do not have) takes it longer than all of ours.
"""

from __future__ import annotations

import functools

from spotinference.api.kinds import NODE, Json
from spotinference.clients.kube import Kube
from spotinference.clients.reflector import Reflector
from spotinference.controller.handlers import Router
from spotinference.controller.store import slim_copy


def feed(kube: Kube, router: Router, silence_s: float) -> Reflector:
    """To be run until cancelled. Complete once synced: nothing may be decided before."""

    def changed(before: Json | None, after: Json | None) -> None:
        if after is not None:
            router.saw(NODE, "MODIFIED", after)
        elif before is not None:
            router.saw(NODE, "DELETED", before)

    keep = functools.partial(slim_copy, NODE)
    return Reflector(kube, NODE, on_change=changed, keep=keep, silence_s=silence_s)
