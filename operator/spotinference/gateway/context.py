"""What every exchange works with; made in the composition root (`app.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from spotinference.clients.clock import Clock
from spotinference.gateway.catalogue import Catalogue
from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.engines import Engines
from spotinference.gateway.forward import Forward
from spotinference.gateway.limits import Limits
from spotinference.gateway.metrics import Metrics
from spotinference.gateway.parking import Parking
from spotinference.gateway.replays import Replays
from spotinference.gateway.replicas import Replicas
from spotinference.gateway.turns import Turns
from spotinference.gateway.usage import Usage
from spotinference.gateway.vitals import Vitals


@dataclass(frozen=True, slots=True)
class Context:
    settings: GatewaySettings
    clock: Clock
    catalogue: Catalogue
    replicas: Replicas
    parking: Parking
    engines: Engines
    metrics: Metrics
    vitals: Vitals
    limits: Limits
    usage: Usage
    replays: Replays
    forward: Forward
    turns: Turns
