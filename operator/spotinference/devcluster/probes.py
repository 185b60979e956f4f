"""Probes: what the kubelet asks a container, and when.

`check` asks once; `watch` repeats it with the probe's period and thresholds and reports changes.
A startup probe holds back the other two until it has passed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import aiohttp

from spotinference.api.kinds import Json

EXEC_OUTPUT_LIMIT = 4096
Exec = Callable[[Sequence[str], float], Awaitable[tuple[int, str]]]
"""(command, timeout_s) → (exit code, output); run beside the container, with its environment."""


@dataclass(frozen=True, slots=True)
class Outcome:
    ok: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the container is, for its probes and HTTP hooks."""

    address: str
    ports: dict[str, int]
    http: aiohttp.ClientSession
    execute: Exec

    def port(self, value: int | str) -> int:
        return self.ports[value] if value in self.ports else int(value)


@dataclass(frozen=True, slots=True)
class Probe:
    spec: Json

    def _number(self, key: str, default: int) -> int:
        return int(self.spec.get(key) or default)

    @property
    def initial_delay_s(self) -> int:
        return self._number("initialDelaySeconds", 0)

    @property
    def period_s(self) -> int:
        return self._number("periodSeconds", 10)

    @property
    def timeout_s(self) -> int:
        return self._number("timeoutSeconds", 1)

    @property
    def success_threshold(self) -> int:
        return self._number("successThreshold", 1)

    @property
    def failure_threshold(self) -> int:
        return self._number("failureThreshold", 3)


async def check(probe: Probe, target: Target) -> Outcome:
    """Asks once; never raises for what the container does."""
    try:
        async with asyncio.timeout(probe.timeout_s):
            if "httpGet" in probe.spec:
                return await http_get(probe.spec["httpGet"], target)
            if "tcpSocket" in probe.spec:
                return await _tcp(probe.spec["tcpSocket"], target)
            if "exec" in probe.spec:
                code, output = await target.execute(probe.spec["exec"]["command"], probe.timeout_s)
                return Outcome(code == 0, f"command exited with {code}: {output}")
    except TimeoutError:
        return Outcome(ok=False, message=f"no answer within {probe.timeout_s} s")
    return Outcome(ok=False, message="the embedded cluster knows httpGet, tcpSocket and exec only")


async def http_get(spec: Json, target: Target) -> Outcome:
    scheme = spec.get("scheme", "HTTP").lower()
    host = spec.get("host") or target.address
    try:
        url = f"{scheme}://{host}:{target.port(spec['port'])}{spec.get('path', '/')}"
        headers = {h["name"]: h["value"] for h in spec.get("httpHeaders") or []}
        async with target.http.get(
            url, headers=headers, allow_redirects=False, ssl=False
        ) as response:
            ok = 200 <= response.status < 400
            return Outcome(
                ok, "" if ok else f"HTTP probe failed with statuscode: {response.status}"
            )
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return Outcome(ok=False, message=f"Get failed: {type(error).__name__}: {error}")


async def _tcp(spec: Json, target: Target) -> Outcome:
    host = spec.get("host") or target.address
    try:
        _, writer = await asyncio.open_connection(host, target.port(spec["port"]))
    except (OSError, ValueError) as error:
        return Outcome(ok=False, message=f"dial tcp: {error}")
    writer.close()
    return Outcome(ok=True)


async def watch(
    probe: Probe,
    target: Target,
    report: Callable[[bool, str], None],
    *,
    initially: bool | None = None,
) -> None:
    """Probes until cancelled; reports each change of the verdict, with the failure's message.

    The verdict changes after `successThreshold` or `failureThreshold` results in a row.
    """
    verdict, same, before = initially, 0, None
    loop = asyncio.get_running_loop()
    next_at = loop.time() + probe.initial_delay_s
    while True:
        await asyncio.sleep(next_at - loop.time())
        outcome = await check(probe, target)
        same = same + 1 if outcome.ok is before else 1
        before = outcome.ok
        needed = probe.success_threshold if outcome.ok else probe.failure_threshold
        if same >= needed and outcome.ok is not verdict:
            verdict = outcome.ok
            report(verdict, outcome.message)
        next_at = max(next_at + probe.period_s, loop.time())
