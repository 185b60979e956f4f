"""Notices to replicas of a gateway's bench, and how many answers left because of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from spotinference.api import names, times
from spotinference.api.kinds import POD
from tests.support.gateway import Bench, Engine


def notice(b: Bench, engine: Engine, in_s: float) -> None:
    until = times.to_micro_text(datetime.now(UTC) + timedelta(seconds=in_s))
    doomed = {names.ANNOTATION_DOOMED_UNTIL: until}
    b.kube.put(POD, b.pod(engine.pod, "demo", engine.sim.port, annotations=doomed))


def evacuated(b: Bench) -> float:
    value = b.gateway.context.metrics.registry.get_sample_value(
        "spotinference_gateway_evacuated_total", {"tier": "demo"}
    )
    return value or 0.0
