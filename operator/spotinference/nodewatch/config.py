"""node-watch's configuration: flags, then SPOTINFERENCE_NODE_WATCH_* variables, then defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from spotinference import errors
from spotinference.clients.metadata import ADDRESS

ENV_PREFIX = "SPOTINFERENCE_NODE_WATCH_"

RETRY_MAX_S = 10.0
"""The longest wait after an answer that failed: half of the shortest notice still remains."""
RECHECK_S = 10.0
"""While something is announced, the condition is compared with the node this often: a node that
registers anew has lost it."""
START_S = 60.0
"""The API server must show our node within this time."""


class NodeWatchConfig(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True)

    node: str = Field(min_length=1, max_length=253)
    provider: Literal["auto", "aws", "gcp", "azure"] = "auto"
    metadata_url: str = Field(default=ADDRESS, pattern=r"^http://\S+[^/]$")
    notice_seconds: int = Field(default=30, ge=1, le=3600)
    kubeconfig: Path | None = None
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")


def load(**flags: object) -> NodeWatchConfig:
    """Flags that were given win over variables; `ConfigInvalid` names the wrong one."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return NodeWatchConfig(**given)  # type: ignore[arg-type]  # validated by pydantic
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        raise errors.ConfigInvalid(
            f"--{name.replace('_', '-')} ({ENV_PREFIX}{name.upper()}): {first['msg']}"
        ) from error
