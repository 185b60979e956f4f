"""The operator's own configuration: flags, then SPOTINFERENCE_OPERATOR_* variables, then defaults."""

from __future__ import annotations

import socket
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from spotinference import __version__, errors

ENV_PREFIX = "SPOTINFERENCE_OPERATOR_"

RESYNC_S = 300.0
"""Every tier is looked at this often even if nothing happens; also how often the store is compared
with the API server, since Kopf does not notice what was deleted while its watch was away."""
STOP_DEADLINE_S = 6.0
"""SIGTERM: time for the writes under way. With the Lease's release and Kopf's own end it must stay
below 10 s."""
WATCH_SILENCE_S = 70.0
"""Bookmarks come each minute: a watch silent for longer is frozen, and begun anew."""
START_DEADLINE_S = 60.0
"""The API server must answer the checks at start within this time."""


class OperatorConfig(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True)

    kubeconfig: Path | None = None
    namespace: str = Field(default="spotinference", min_length=1, max_length=63)
    identity: str = Field(default_factory=socket.gethostname, min_length=1, max_length=200)
    hub_endpoint: str = Field(default="https://huggingface.co", pattern=r"^https?://\S+$")
    image: str = Field(
        default=f"ghcr.io/spotinference/spotinference:{__version__}", min_length=1, max_length=512
    )
    host: str = "0.0.0.0"
    metrics_port: int = Field(default=9090, ge=0, le=65535)
    probe_port: int = Field(default=8081, ge=0, le=65535)
    announce: Path | None = None
    watch_silence_s: float = Field(default=WATCH_SILENCE_S, gt=0, le=3600)
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")


def load(**flags: object) -> OperatorConfig:
    """Flags that were given win over variables; `ConfigInvalid` names the wrong one."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return OperatorConfig(**given)  # type: ignore[arg-type]  # validated by pydantic
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        raise errors.ConfigInvalid(
            f"--{name.replace('_', '-')} ({ENV_PREFIX}{name.upper()}) is {first['input']!r}: "
            f"{first['msg']}"
        ) from error
