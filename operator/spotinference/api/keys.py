"""API keys: the file that a Secret mounts into the gateway. Only hashes are stored.

    {"keys": [{"id": "team-a", "sha256": "<64 hex digits>", "namespace": "default"}]}

A key opens the tiers of one namespace (its tenant scope).
"""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict, Field

KEY_PREFIX = "sk-spot-"


class ApiKey(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, max_length=63)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    namespace: str = Field(min_length=1, max_length=63)


class KeyFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: list[ApiKey] = Field(max_length=10_000)


def digest(secret: str) -> str:
    """The stored form of a key. Keys are 256 random bits, so a plain hash suffices."""
    return hashlib.sha256(secret.encode()).hexdigest()
