"""The metadata services of AWS, Google and Azure, as a machine sees its own: what is announced.

`answer` returns an announcement, or None when the service *says* that there is none. Whatever is
unclear (no answer, 5xx, 410 while Azure's service restarts, rubbish) is `ApiUnavailable`: unknown is
not nothing. Every request has a deadline, every body a bound, redirects are not followed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import aiohttp

from spotinference import errors
from spotinference.core import announcements
from spotinference.core.announcements import Announcement

Cloud = Literal["aws", "gcp", "azure"]
ADDRESS = "http://169.254.169.254"
MAX_BODY_BYTES = 1 << 18
REQUEST_S = 2.0
LONG_POLL_S = 60
"""Google answers at once when the value changes; without a change after this long."""
LONG_POLL_MARGIN_S = 10.0
AZURE_FIRST_S = 130.0
"""The first request for Scheduled Events switches the service on, which takes up to two minutes."""
TOKEN_S = 21600


class Source(Protocol):
    pause_s: float
    """between two answers"""

    async def present(self) -> bool:
        """Whether this is the cloud we run on; never raises."""
        ...

    async def answer(self) -> Announcement | None: ...


@dataclass(slots=True)
class Asker:
    """GET and PUT on one metadata service."""

    session: aiohttp.ClientSession
    address: str = ADDRESS
    request_s: float = REQUEST_S

    async def ask(
        self,
        path: str,
        headers: dict[str, str],
        *,
        method: str = "GET",
        deadline_s: float | None = None,
    ) -> tuple[int, str, dict[str, str]]:
        """(status, body, headers in lower case); `ApiUnavailable` without a whole answer."""
        try:
            async with (
                asyncio.timeout(self.request_s if deadline_s is None else deadline_s),
                self.session.request(
                    method, f"{self.address}{path}", headers=headers, allow_redirects=False
                ) as response,
            ):
                body = await response.content.read(MAX_BODY_BYTES + 1)
                while len(body) <= MAX_BODY_BYTES and (more := await response.content.readany()):
                    body += more
                if len(body) > MAX_BODY_BYTES:
                    raise errors.ApiUnavailable(f"metadata {path}: too long an answer")
                found = {name.lower(): value for name, value in response.headers.items()}
                return response.status, body.decode("utf-8", "replace"), found
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise errors.ApiUnavailable(f"metadata {path}: {type(error).__name__}") from error

    async def text(
        self, path: str, headers: dict[str, str], *, deadline_s: float | None = None
    ) -> str:
        status, body, _ = await self.ask(path, headers, deadline_s=deadline_s)
        if status != 200:
            raise errors.ApiUnavailable(f"metadata {path}: {status}")
        return body


@dataclass(slots=True)
class Aws:
    """IMDSv2: a session token, then documents that are 404 until something is announced."""

    asker: Asker
    pause_s: float = 2.0
    _token: str | None = None

    async def present(self) -> bool:
        try:
            return bool(await self._fresh_token())
        except errors.Retryable:
            return False

    async def answer(self) -> Announcement | None:
        action = await self._document("/latest/meta-data/spot/instance-action")
        rebalance = await self._document("/latest/meta-data/events/recommendations/rebalance")
        return _read(lambda: announcements.of_aws(action, rebalance))

    async def _document(self, path: str) -> str | None:
        for _ in range(2):
            token = self._token or await self._fresh_token()
            status, body, _ = await self.asker.ask(path, {"X-aws-ec2-metadata-token": token})
            if status == 200:
                return body
            if status == 404:
                return None
            if status != 401:
                raise errors.ApiUnavailable(f"metadata {path}: {status}")
            self._token = None  # expired, or of a machine before a restart from an image
        raise errors.ApiUnavailable(f"metadata {path}: a fresh token was refused")

    async def _fresh_token(self) -> str:
        status, body, _ = await self.asker.ask(
            "/latest/api/token",
            {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)},
            method="PUT",
        )
        if status != 200 or not body:
            raise errors.ApiUnavailable(f"metadata token: {status}")
        self._token = body
        return body


@dataclass(slots=True)
class Gcp:
    """A long poll on `preempted`, and a look at `maintenance-event` each time it returns.

    It waits for a change only after a whole answer that announced nothing. What is announced is
    said again at each `pause_s`, as by the other clouds: whoever failed to pass it on would
    otherwise hear nothing for `long_poll_s`, which is longer than a preempted machine lasts.
    """

    asker: Asker
    pause_s: float = 1.0
    long_poll_s: int = LONG_POLL_S
    _etag: str | None = None

    async def present(self) -> bool:
        try:
            status, _, headers = await self.asker.ask("/computeMetadata/v1/", _GOOGLE)
        except errors.Retryable:
            return False
        return status == 200 and headers.get("metadata-flavor") == "Google"

    async def answer(self) -> Announcement | None:
        path, wait_s = "/computeMetadata/v1/instance/preempted", 0
        if self._etag is not None:
            wait_s = self.long_poll_s
            path += f"?wait_for_change=true&timeout_sec={wait_s}&last_etag={self._etag}"
        self._etag = None  # whatever fails from here on: the next one answers at once
        preempted, etag = await self._value(path, wait_s)
        maintenance, _ = await self._value("/computeMetadata/v1/instance/maintenance-event", 0)
        found = _read(lambda: announcements.of_gcp(preempted, maintenance))
        if found is None:
            self._etag = etag
        return found

    async def _value(self, path: str, wait_s: float) -> tuple[str, str | None]:
        deadline_s = wait_s + LONG_POLL_MARGIN_S if wait_s else None
        status, body, headers = await self.asker.ask(path, _GOOGLE, deadline_s=deadline_s)
        if status != 200 or headers.get("metadata-flavor") != "Google":
            raise errors.ApiUnavailable(f"metadata {path}: {status}")
        return body, headers.get("etag")


@dataclass(slots=True)
class Azure:
    """Scheduled Events: a document of everything that is announced for our scale set."""

    asker: Asker
    pause_s: float = 1.0
    first_s: float = AZURE_FIRST_S
    _machine: str | None = None
    _on: bool = field(default=False)

    async def present(self) -> bool:
        try:
            await self._name()
        except errors.Retryable:
            return False
        return True

    async def answer(self) -> Announcement | None:
        machine = self._machine or await self._name()
        document = await self.asker.text(
            "/metadata/scheduledevents?api-version=2020-07-01",
            _AZURE,
            deadline_s=None if self._on else self.first_s,
        )
        self._on = True
        return _read(lambda: announcements.of_azure(document, machine))

    async def _name(self) -> str:
        path = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
        name = (await self.asker.text(path, _AZURE)).strip()
        if not name:
            raise errors.ApiUnavailable("metadata: the machine has no name")
        self._machine = name
        return name


_GOOGLE = {"Metadata-Flavor": "Google"}
_AZURE = {"Metadata": "true"}


def source(cloud: Cloud, asker: Asker) -> Source:
    match cloud:
        case "aws":
            return Aws(asker)
        case "gcp":
            return Gcp(asker)
        case "azure":
            return Azure(asker)


async def detect(provider_id: str, asker: Asker) -> Cloud | None:
    """The cloud by the node's spec.providerID, else by which metadata service answers."""
    known: dict[str, Cloud] = {"aws": "aws", "gce": "gcp", "azure": "azure"}
    scheme, _, _ = provider_id.partition("://")
    if scheme in known:
        return known[scheme]
    clouds: tuple[Cloud, ...] = ("aws", "gcp", "azure")
    answers = await asyncio.gather(*(source(cloud, asker).present() for cloud in clouds))
    return next((cloud for cloud, there in zip(clouds, answers, strict=True) if there), None)


def _read(parse: Callable[[], Announcement | None]) -> Announcement | None:
    try:
        return parse()
    except ValueError as error:
        raise errors.ApiUnavailable(str(error)) from error
