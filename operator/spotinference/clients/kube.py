"""The Kubernetes API: a thin, typed client over `kubernetes.aio`'s transport.

Objects are decoded JSON (`Json`), paths come from `api.kinds`, so no discovery request is needed.
Every call has a deadline; every failure is one of `errors`. Reads are retried here (tenacity);
writes are not: their caller observes again and decides again.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client as k8s
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from spotinference import errors
from spotinference.api.kinds import ACCESS_REVIEW, Json, Kind
from spotinference.clients import kube_access

REQUEST_TIMEOUT_S = 15.0
READ_ATTEMPTS = 4
WATCH_TIMEOUT_S = 290
WATCH_SILENCE_S = 70.0
"""Without any event or bookmark this long a watch counts as frozen (bookmarks come each minute)."""
PAGE_SIZE = 500


@dataclass(frozen=True, slots=True)
class Listing:
    items: list[Json]
    resource_version: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    type: str
    """ADDED, MODIFIED, DELETED or BOOKMARK"""
    object: Json


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to reach the API server as ourselves, for a library with its own transport (Kopf)."""

    server: str
    token: str | None
    ca_file: str | None
    certificate_file: str | None
    key_file: str | None
    insecure: bool


class Kube:
    """One connection pool to one API server, as one identity."""

    def __init__(self, api: k8s.ApiClient, field_manager: str) -> None:
        self._api = api
        self.field_manager = field_manager

    @classmethod
    async def connect(cls, *, field_manager: str, kubeconfig: Path | None = None) -> Kube:
        """With a kubeconfig file, else in-cluster; `ConfigInvalid` says what is missing."""
        return cls(k8s.ApiClient(await kube_access.configuration(kubeconfig)), field_manager)

    async def close(self) -> None:
        await self._api.close()

    async def credentials(self) -> Credentials:
        """Read anew each time: tokens of ServiceAccounts rotate."""
        headers: dict[str, str] = {}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], "/", "GET", None)
        _, _, token = headers.get("authorization", "").partition(" ")
        configuration = self._api.configuration
        return Credentials(
            server=configuration.host,
            token=token or None,
            ca_file=configuration.ssl_ca_cert,
            certificate_file=configuration.cert_file,
            key_file=configuration.key_file,
            insecure=not configuration.verify_ssl,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- reads ----------------------------------------------------------------------------------

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Json:
        return await self._read(kind.path(name, namespace))

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> Listing:
        """All objects, page by page; a failed page fails the whole list (never a half one)."""
        items: list[Json] = []
        token: str | None = None
        while True:
            page = await self._read(
                kind.path(namespace=namespace),
                labelSelector=label_selector,
                fieldSelector=field_selector,
                limit=str(PAGE_SIZE),
                **({"continue": token} if token else {}),
            )
            items.extend(page.get("items") or [])
            token = page["metadata"].get("continue")
            if not token:
                return Listing(items, page["metadata"]["resourceVersion"])

    async def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str | None = None,
        field_selector: str | None = None,
        silence_s: float = WATCH_SILENCE_S,
    ) -> AsyncIterator[WatchEvent]:
        """Events after `resource_version`; ends normally at the server's time-out.

        `Expired` means list again; `ApiUnavailable` covers a frozen connection too.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "timeoutSeconds": str(WATCH_TIMEOUT_S),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=silence_s)
        async with self._open("GET", kind.path(namespace=namespace), query, timeout=timeout) as r:
            while line := await _line(r):
                event = _event(line)
                if event.type == "ERROR":
                    status = event.object
                    _raise(int(status.get("code") or 500), status, "GET", kind.plural)
                yield event

    async def allowed(self, verb: str, kind: Kind, namespace: str | None = None) -> bool:
        """Whether we ourselves may do this (SelfSubjectAccessReview)."""
        attributes = {"verb": verb, "group": kind.group, "resource": kind.plural}
        if namespace is not None:
            attributes["namespace"] = namespace
        body: Json = {
            "apiVersion": ACCESS_REVIEW.api_version,
            "kind": ACCESS_REVIEW.kind,
            "spec": {"resourceAttributes": attributes},
        }
        answer = await self._request("POST", ACCESS_REVIEW.path(), body=body)
        return bool(answer["status"]["allowed"])

    # --- writes ---------------------------------------------------------------------------------

    async def apply(self, kind: Kind, body: Json, *, subresource: str | None = None) -> Json:
        """Server-side apply with our field manager, forced.

        A `metadata.resourceVersion` in the body is a precondition: `Conflict` when it is stale.
        """
        meta = body["metadata"]
        return await self._request(
            "PATCH",
            kind.path(meta["name"], meta.get("namespace"), subresource),
            {"fieldManager": self.field_manager, "force": "true"},
            body,
            content_type="application/apply-patch+yaml",
        )

    async def create(self, kind: Kind, body: Json, *, subresource: str | None = None) -> Json:
        """POST; `Conflict` when the name is taken. With a subresource the body's name is its owner."""
        meta = body.get("metadata", {})
        name = meta["name"] if subresource else None
        return await self._request(
            "POST",
            kind.path(name, meta.get("namespace"), subresource),
            {"fieldManager": self.field_manager},
            body,
        )

    async def merge_patch(
        self,
        kind: Kind,
        name: str,
        namespace: str | None,
        patch: Json,
        *,
        subresource: str | None = None,
    ) -> Json:
        return await self._request(
            "PATCH",
            kind.path(name, namespace, subresource),
            {"fieldManager": self.field_manager},
            patch,
            content_type="application/merge-patch+json",
        )

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        grace_s: int | None = None,
        propagation: str | None = None,
    ) -> None:
        """Deletes; absent already is success, another uid under that name is `Conflict`."""
        body: Json = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        if propagation is not None:
            body["propagationPolicy"] = propagation
        try:
            await self._request("DELETE", kind.path(name, namespace), body=body)
        except errors.NotFound:
            return

    # --- transport ------------------------------------------------------------------------------

    async def _read(self, path: str, **query: str | None) -> Json:
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(READ_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            retry=retry_if_exception_type(errors.Retryable),
            reraise=True,
        ):
            with attempt:
                return await self._request("GET", path, query)
        raise errors.Bug("tenacity returned without a result")

    async def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str | None] | dict[str, str] | None = None,
        body: Json | None = None,
        *,
        content_type: str = "application/json",
    ) -> Json:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        async with self._open(
            method, path, query, body, content_type=content_type, timeout=timeout
        ) as response:
            try:
                decoded: Json = await response.json(content_type=None)
            except ValueError as error:
                raise errors.ApiUnavailable(f"{method} {path}: the answer is no JSON") from error
            return decoded

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        query: dict[str, str | None] | dict[str, str] | None = None,
        body: Json | None = None,
        *,
        content_type: str = "application/json",
        timeout: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        present = {key: value for key, value in (query or {}).items() if value is not None}
        url = self._api.configuration.host + path + (f"?{urlencode(present)}" if present else "")
        headers: dict[str, str] = {
            "Accept": "application/json",
            "Content-Type": content_type,
            "User-Agent": self.field_manager,
        }
        what = f"{method} {path}"
        try:
            await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            raw = await self._api.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=timeout
            )
            response: aiohttp.ClientResponse = raw.response
            async with response:
                if response.status >= 400:
                    _raise(response.status, await _status(response), method, path)
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise errors.ApiUnavailable(f"{what}: {type(error).__name__}: {error}") from error


async def _line(response: aiohttp.ClientResponse) -> bytes:
    """One watch event, however long (readline of aiohttp stops at its buffer's limit)."""
    parts: list[bytes] = []
    while True:
        try:
            parts.append(await response.content.readuntil(b"\n"))
        except ValueError as error:  # longer than the buffer
            raise errors.ApiUnavailable(f"watch event too long: {error}") from error
        return b"".join(parts)


def _event(line: bytes) -> WatchEvent:
    """One line of a watch; a proxy on the way may have ended the body in the middle of it."""
    try:
        event = json.loads(line)
        return WatchEvent(str(event["type"]), dict(event["object"]))
    except (ValueError, KeyError, TypeError) as error:
        raise errors.ApiUnavailable(f"watch event cut off: {line[:80]!r}") from error


async def _status(response: aiohttp.ClientResponse) -> Json:
    try:
        decoded = json.loads(await response.read())
    except ValueError:
        return {}
    return decoded if isinstance(decoded, dict) else {}


def _raise(code: int, status: Json, method: str, path: str) -> None:
    """Maps an API failure onto our error tree."""
    message = f"{method} {path}: {code} {status.get('message', '')}"
    retry_after: Any = (status.get("details") or {}).get("retryAfterSeconds")
    match code:
        case 404:
            raise errors.NotFound(message)
        case 409:
            raise errors.Conflict(message)
        case 410:
            raise errors.Expired(message)
        case 429:
            raise errors.Throttled(message, float(retry_after) if retry_after else None)
        case 401 | 403:
            raise errors.Forbidden(message)
        case 400 | 422:
            raise errors.InvalidInput(message)
        case 500 if "failed to create typed patch object" in message:
            raise errors.Bug(message)
        case _:
            raise errors.ApiUnavailable(message)
