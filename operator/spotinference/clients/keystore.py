"""Where API keys are kept: the Secret that the gateway mounts, or a file. Called by the CLI.

Every change is read, change, write under a precondition; whoever writes at the same time is not
overwritten. A change is a function of the keys as they are, so that it can be made again.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from spotinference import errors
from spotinference.api.keys import KeyFile
from spotinference.api.kinds import SECRET, Json
from spotinference.clients.kube import Kube

ENTRY = "keys.json"
EDIT_ATTEMPTS = 10
"""Two people who edit at the same time both get through; a crowd of scripts does too."""

Change = Callable[[KeyFile], KeyFile]


class KeyStore(Protocol):
    async def read(self) -> KeyFile:
        """The keys as they are; none when nothing was stored yet."""
        ...

    async def edit(self, change: Change) -> None:
        """Stores what `change` makes of the keys; it may be called more than once."""
        ...


class FileStore:
    """A keys file, readable by its owner only, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def read(self) -> KeyFile:
        try:
            return _parsed(self._path.read_bytes(), f"file {self._path}")
        except FileNotFoundError:
            return KeyFile(keys=[])
        except OSError as error:
            raise errors.ConfigInvalid(f"keys file {self._path}: {error.strerror}") from error

    async def edit(self, change: Change) -> None:
        lock = self._path.with_name(f".{self._path.name}.lock")
        try:
            with lock.open("w") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                text = change(await self.read()).text() + "\n"
                fresh = self._path.with_name(f".{self._path.name}.new")
                descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(descriptor, "w") as out:
                    out.write(text)
                    out.flush()
                    os.fsync(out.fileno())
                fresh.replace(self._path)
        except OSError as error:
            raise errors.ConfigInvalid(f"keys file {self._path}: {error.strerror}") from error


class SecretStore:
    """The Secret of the chart's value `gateway.keysSecret`; made by the first key."""

    def __init__(self, kube: Kube, namespace: str, name: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name

    async def read(self) -> KeyFile:
        return self._keys(await self._get())

    async def edit(self, change: Change) -> None:
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(EDIT_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.05, max=2),
            retry=retry_if_exception_type(errors.Conflict),
            reraise=True,
        ):
            with attempt:
                await self._edit(change)

    async def _edit(self, change: Change) -> None:
        found = await self._get()
        text = change(self._keys(found)).text()
        data = {ENTRY: base64.b64encode(text.encode()).decode()}
        if found is None:
            meta = {"name": self._name, "namespace": self._namespace}
            body: Json = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "Opaque"}
            await self._kube.create(SECRET, body | {"data": data})
            return
        version = found["metadata"]["resourceVersion"]
        await self._kube.merge_patch(
            SECRET, self._name, self._namespace,
            {"metadata": {"resourceVersion": version}, "data": data},
        )  # fmt: skip

    async def _get(self) -> Json | None:
        try:
            return await self._kube.get(SECRET, self._name, self._namespace)
        except errors.NotFound:
            return None

    def _keys(self, secret: Json | None) -> KeyFile:
        encoded = ((secret or {}).get("data") or {}).get(ENTRY)
        if encoded is None:
            return KeyFile(keys=[])
        where = f"Secret {self._namespace}/{self._name}, entry {ENTRY}"
        try:
            return _parsed(base64.b64decode(encoded, validate=True), where)
        except binascii.Error as error:
            raise errors.ConfigInvalid(f"{where}: not base64") from error


@asynccontextmanager
async def secret_store(
    kubeconfig: Path | None, namespace: str, name: str
) -> AsyncIterator[KeyStore]:
    async with await Kube.connect(
        field_manager="spotinference-keys", kubeconfig=kubeconfig
    ) as kube:
        yield SecretStore(kube, namespace, name)


def _parsed(text: bytes, where: str) -> KeyFile:
    try:
        return KeyFile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "all of it"
        raise errors.ConfigInvalid(
            f"{where}: {field}: {first['msg']}. Nothing was changed; mend or remove it first."
        ) from error
