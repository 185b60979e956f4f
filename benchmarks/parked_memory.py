"""Memory of a parked request: our gateway beside bare aiohttp that does nothing but wait.

python -m benchmarks.parked_memory [--requests 900] [--json]

Each server is a process of its own; its resident memory is read with N requests parked (or N
connections idle), after 50 of the same kind have made its pools. Bodies are some 80 bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from aiohttp import web

from benchmarks.gateway import cluster, measure, processes
from benchmarks.gateway.processes import Group
from benchmarks.report import Report

SETTLE_S = 3.0
WARM = 50
MOST_ABOVE_KIB = 8.0
"""What a parked request may cost above one in bare aiohttp: the status, the place, the body."""
STATUS_AFTER_S = 0.2
SERVE_FOR_S = 600.0
CORE = "0"


async def serve_bare(port: int, *, begin: bool) -> None:
    """Reads each request's body, begins a streamed answer or not, and then waits."""

    async def handle(http: web.BaseRequest) -> web.StreamResponse:
        if http.method == "GET":
            return web.Response(text="ok")
        await http.read()
        response = web.StreamResponse()
        if begin:
            await response.prepare(http)
            await response.write(b": waking\n\n")
        await asyncio.sleep(SERVE_FOR_S)
        return response

    runner = web.ServerRunner(web.Server(handle, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.sleep(SERVE_FOR_S)


def kib_each(group: Group, port: int, request: bytes, count: int) -> float:
    """Resident KiB of each of `count` connections that have sent this."""
    with ExitStack() as stack:
        _open(stack, port, request, WARM)
        time.sleep(SETTLE_S)
        before = group.rss_bytes()
        _open(stack, port, request, count)
        time.sleep(SETTLE_S)
        return (group.rss_bytes() - before) / count / 1024


def _open(stack: ExitStack, port: int, request: bytes, count: int) -> None:
    for _ in range(count):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        client.sendall(request)


@contextmanager
def bare(folder: Path, *, begin: bool) -> Iterator[tuple[Group, int]]:
    port = processes.free_port()
    command = [sys.executable, "-m", "benchmarks.parked_memory", "--serve", str(port)]
    command += ["--begin"] if begin else []
    log = folder / "bare.txt"
    with processes.pinned(command, CORE, log) as group:
        processes.until_answering("127.0.0.1", port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", log)
        yield group, port


@contextmanager
def gateway(folder: Path, fail_fast_s: float) -> Iterator[tuple[Group, int]]:
    port = processes.free_port()
    objects = {"inferencetiers": [cluster.tier("asleep", wake={"maxParked": 100_000})], "pods": []}
    log = folder / "gateway.txt"
    with cluster.api_server(objects, folder) as kubeconfig:
        command = [
            sys.executable, "-m", "spotinference", "gateway", "run",
            "--kubeconfig", str(kubeconfig), "--keys-file", str(cluster.keys_file(folder)),
            "--host", "127.0.0.1", "--port", str(port), "--metrics-port", "0",
            "--announce", str(folder / "announce.json"), "--log-level", "warning",
        ]  # fmt: skip
        environment = {
            "SPOTINFERENCE_GATEWAY_FAIL_FAST_S": str(fail_fast_s),
            "SPOTINFERENCE_GATEWAY_MAX_PARKED_PER_KEY": "100000",
        }
        with processes.pinned(command, CORE, log, environment) as group:
            ready = (
                f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {cluster.KEY}\r\n\r\n"
            ).encode()
            processes.until_answering("127.0.0.1", port, ready, log)
            yield group, port


def run(requests: int) -> Report:
    report = Report(f"Resident memory of {requests} parked requests")
    whole = measure.request("asleep", stream=False)
    streamed = measure.request("asleep", stream=True)
    with tempfile.TemporaryDirectory(prefix="spot-bench-") as name:
        folder = Path(name)
        found = {}
        for what, begin, request in (
            ("idle connection", False, b""),
            ("waits without a status", False, whole),
            ("waits with a status", True, streamed),
        ):
            with bare(folder, begin=begin) as (group, port):
                found["bare", what] = kib_each(group, port, request, requests)
            with gateway(folder, STATUS_AFTER_S if begin else SERVE_FOR_S) as (group, port):
                found["ours", what] = kib_each(group, port, request, requests)
            ours, theirs = found["ours", what], found["bare", what]
            report.row(
                state=what,
                bare_aiohttp_kib=f"{theirs:.1f}",
                gateway_kib=f"{ours:.1f}",
                above_kib=f"{ours - theirs:.1f}",
            )
            if request:
                report.expect(
                    ours - theirs < MOST_ABOVE_KIB,
                    f"a request that {what} costs < {MOST_ABOVE_KIB:g} KiB above bare aiohttp",
                )
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=900)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--begin", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve_bare(options.serve, begin=options.begin))
        return
    sys.exit(run(options.requests).print(as_json=options.json))


if __name__ == "__main__":
    main()
