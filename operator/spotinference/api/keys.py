"""API keys: the file that a Secret mounts into the gateway. Only hashes are stored.

    {"keys": [{"id": "team-a", "sha256": "<64 hex digits>", "namespace": "default",
               "tiers": ["llama-*"], "requests_per_minute": 600, "expires": "2027-01-01T00:00:00Z"}]}

A key opens the tiers of one namespace (its tenant), or those of them that `tiers` names. A field
that is absent does not limit anything.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

KEY_PREFIX = "sk-spot-"

TierPattern = Annotated[str, Field(min_length=1, max_length=256)]


class ApiKey(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, max_length=63)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    namespace: str = Field(min_length=1, max_length=63)
    tiers: tuple[TierPattern, ...] | None = Field(default=None, min_length=1, max_length=100)
    """Names of tiers or models, `*` and `?` as in file names; absent: all of the namespace."""
    requests_per_minute: int | None = Field(default=None, ge=1, le=10**9)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=10**12)
    """Prompt and completion together."""
    max_streams: int | None = Field(default=None, ge=1, le=10**6)
    """Requests that are answered or parked at the same time."""
    monthly_tokens: int | None = Field(default=None, ge=1, le=10**15)
    """Prompt and completion together, per calendar month in UTC."""
    expires: AwareDatetime | None = None
    """From then on the key is refused."""
    revoked: AwareDatetime | None = None
    """Since then the key is refused; kept, so that its user is told why."""
    wait: Literal["heartbeat", "strict", "reject"] = "heartbeat"
    """While no replica is there: 200 and heartbeats; headers held until the answer or a true 504;
    or 503 with the expected wait at once."""
    keep_alive: bool = False
    """Whitespace before answers that are not streamed, for proxies that cut silent connections."""

    def opens(self, names: tuple[str, ...]) -> bool:
        """Whether a tier of the key's namespace that goes by these names is the key's."""
        if self.tiers is None:
            return True
        return any(fnmatchcase(name, pattern) for pattern in self.tiers for name in names)

    def expired(self, now: datetime) -> bool:
        return self.expires is not None and now >= self.expires


class KeyFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: list[ApiKey] = Field(max_length=10_000)

    def text(self) -> str:
        """The file as it is stored: what does not limit anything is left out."""
        return self.model_dump_json(indent=2, exclude_defaults=True)


def digest(secret: str) -> str:
    """The stored form of a key. Keys are 256 random bits, so a plain hash suffices."""
    return hashlib.sha256(secret.encode()).hexdigest()
