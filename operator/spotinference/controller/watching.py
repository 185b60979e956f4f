"""Kopf, embedded: it watches and calls our handlers, and does nothing else.

No finalizers, annotations, events or peering of its own. It is run by its two public halves so
that our signal handlers replace its own before it starts: on SIGTERM our writes end and the Lease
is released first, then it is told to stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import kopf
from kopf._core.engines.peering import Identity

from spotinference.clients.kube import Kube
from spotinference.controller import handlers

BACKOFFS_S = (1, 1, 2, 3, 5, 8, 13, 21, *([30] * 20))
"""About ten minutes of an absent API server before the process gives up and is restarted."""


class NoDiffBase(kopf.DiffBaseStorage):
    """We have no handler that asks what changed, so nothing is copied to find it out: a tenth of
    the operator's time while fifty nodes get a notice at once.
    """

    def build(
        self,
        *,
        body: kopf.Body,  # noqa: ARG002  # the base class's signature
        extra_fields: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> Any:
        return {}

    def fetch(self, *, body: kopf.Body) -> Any:  # noqa: ARG002
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: Any) -> None:
        """Nothing is kept on objects."""


def registry(kube: Kube, router: handlers.Router) -> kopf.OperatorRegistry:
    made = kopf.OperatorRegistry()

    async def login(**_: Any) -> kopf.ConnectionInfo:
        credentials = await kube.credentials()
        return kopf.ConnectionInfo(
            server=credentials.server,
            ca_path=credentials.ca_file,
            insecure=credentials.insecure,
            scheme="Bearer" if credentials.token else None,
            token=credentials.token,
            certificate_path=credentials.certificate_file,
            private_key_path=credentials.key_file,
        )

    kopf.on.login(registry=made, id="login")(login)
    handlers.register(made, router)
    return made


def settings(silence_s: float) -> kopf.OperatorSettings:
    made = kopf.OperatorSettings()
    made.posting.enabled = False
    made.scanning.disabled = True
    made.peering.standalone = True
    made.persistence.diffbase_storage = NoDiffBase()
    made.watching.inactivity_timeout = silence_s
    made.networking.connect_timeout = 10
    made.networking.request_timeout = 60
    made.networking.error_backoffs = BACKOFFS_S
    made.process.ultimate_exiting_timeout = None
    handlers.select(made)
    return made


async def run(
    kube: Kube,
    router: handlers.Router,
    stop: asyncio.Event,
    on_spawned: Callable[[], None],
    silence_s: float,
) -> None:
    """Until `stop` is set; returning or raising without it means that the operator is deaf."""
    existing = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=registry(kube, router),
        settings=settings(silence_s),
        clusterwide=True,
        standalone=True,
        # Peering is off, yet Kopf would ask the system for the user's name, and in a container
        # that runs as an arbitrary uid there is none.
        identity=Identity("spotinference"),
        stop_flag=stop,
    )
    on_spawned()
    await kopf.run_tasks(tasks, ignored=existing)
