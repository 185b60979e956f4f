"""Who may ask for what: the keys file, re-read when it changes, compared in constant time."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import structlog
from pydantic import ValidationError

from spotinference import errors
from spotinference.api import keys, times
from spotinference.api.keys import ApiKey, KeyFile
from spotinference.gateway.errors import Code, GatewayError

log = structlog.get_logger(__name__)

MAX_KEY_CHARS = 256
MAX_FILE_BYTES = 4 * 1024 * 1024
_BUCKET = 8
"""Hex digits of a digest that select a bucket. A digest tells nothing about its key, so finding
the bucket may take any time; what is compared within it is compared in constant time."""


class KeyRing:
    """The keys of one file. A damaged new version leaves the old one in force."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = b""
        self._buckets: dict[str, list[ApiKey]] = {}

    def load(self) -> None:
        """Reads the file; `ConfigInvalid` names what is wrong with it."""
        try:
            with self._path.open("rb") as file:
                text = file.read(MAX_FILE_BYTES + 1)
            if len(text) > MAX_FILE_BYTES:
                raise errors.ConfigInvalid(f"keys file {self._path}: over {MAX_FILE_BYTES} bytes")
            parsed = KeyFile.model_validate_json(text)
        except OSError as error:
            raise errors.ConfigInvalid(
                f"keys file {self._path}: {error.strerror}. Mount the Secret with the keys there, "
                "or make one with `spotinference keys create`."
            ) from error
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise errors.ConfigInvalid(
                f"keys file {self._path}: {where}: {first['msg']}"
            ) from error
        buckets: dict[str, list[ApiKey]] = {}
        for key in parsed.keys:
            buckets.setdefault(key.sha256[:_BUCKET], []).append(key)
        self._text, self._buckets = text, buckets

    async def follow(self, interval_s: float) -> None:
        """Re-reads the file whenever its content changed; runs until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                if self._path.read_bytes() == self._text:
                    continue
                self.load()
                log.info("keys.reloaded", file=str(self._path))
            except (OSError, errors.ConfigInvalid) as error:
                log.warning("keys.kept_old", file=str(self._path), error=str(error))

    def authenticate(self, authorization: list[str], now: Callable[[], datetime]) -> ApiKey:
        """The key of exactly one `Authorization: Bearer …` header; else `invalid_api_key`.

        A key that was and is no more is told so by its own code: its owner then knows what to do.
        """
        if len(authorization) == 1 and authorization[0].startswith("Bearer "):
            secret = authorization[0][len("Bearer ") :]
            if 0 < len(secret) <= MAX_KEY_CHARS and secret.isascii():
                digest = keys.digest(secret)
                for key in self._buckets.get(digest[:_BUCKET], ()):
                    if hmac.compare_digest(digest, key.sha256):
                        return _in_force(key, now)
        raise GatewayError(
            Code.INVALID_API_KEY,
            "No valid API key. Send one as `Authorization: Bearer sk-spot-…`; "
            "an administrator makes keys with `spotinference keys create`.",
        )


def _in_force(key: ApiKey, now: Callable[[], datetime]) -> ApiKey:
    if key.revoked is not None:
        raise GatewayError(
            Code.KEY_REVOKED,
            f"The API key {key.id!r} was revoked at {times.to_text(key.revoked)}. "
            "Ask an administrator for a new one (`spotinference keys create`).",
        )
    if key.expires is not None and key.expired(now()):
        raise GatewayError(
            Code.KEY_EXPIRED,
            f"The API key {key.id!r} expired at {times.to_text(key.expires)}. "
            "Ask an administrator for a new one (`spotinference keys create`).",
        )
    return key
