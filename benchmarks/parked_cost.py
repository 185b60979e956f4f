"""What requests that wait cost those that are answered, and how soon one too many is refused.

python -m benchmarks.parked_cost [--rounds 5] [--json]

Two hundred streams of fifty tokens a second, alone and beside two hundred parked requests, in turns;
then requests above the bound of parked ones. Delays count on a quiet machine only; CPU time per
chunk, from /proc, on any.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from benchmarks.gateway import cluster, measure, native, processes
from benchmarks.gateway.measure import Load, Target
from benchmarks.gateway.processes import Group
from benchmarks.report import Report
from spotinference import errors

MOCK_IP = "127.10.0.5"
CHUNKS, GAP_US = 250, 20_000
STREAMS, PARKED, REFUSED = 200, 200, 500
SECONDS = 6.0
MOST = 1.10
"""Of the 99th percentile alone."""
REFUSED_WITHIN_MS = 5.0


def run(rounds: int) -> Report:
    cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
    if len(cores) < 2:
        raise errors.ConfigInvalid("two cores are needed: one for the gateway, one for the load")
    report = Report(f"{STREAMS} streams beside {PARKED} parked requests, {rounds} rounds")
    load = Load("stream", STREAMS, SECONDS)
    found: dict[str, list[dict[str, float]]] = {"alone": [], "beside": []}
    with (
        tempfile.TemporaryDirectory(prefix="spot-bench-") as name,
        gateway(Path(name), cores[-1], cores[0]) as (group, port),
    ):
        target = Target("127.0.0.1", port, "demo")
        for _ in range(rounds):
            found["alone"].append(measure.run(target, load, group, cores[0]))
            with parked(port, PARKED):
                found["beside"].append(measure.run(target, load, group, cores[0]))
                took_ms = refusals_ms(port)
    for which, figures in found.items():
        report.row(
            streams=which,
            p50_ms=median(f["chunk_p50"] for f in figures),
            p99_ms=median(f["chunk_p99"] for f in figures),
            cpu_us_per_chunk=median(cpu_us(f) for f in figures),
            errors=sum(f["errors"] for f in figures),
        )
    p99, cpu = (ratio(found, "chunk_p99"), ratio(found, None))
    report.facts["p99 per token beside parked requests, times alone"] = round(p99, 3)
    report.facts["CPU per chunk beside parked requests, times alone"] = round(cpu, 3)
    report.expect(p99 < MOST, f"p99 per token moves by less than {MOST - 1:.0%}")
    last = took_ms[int(len(took_ms) * 0.99)]
    report.facts["one too many is refused, ms: p50, p99"] = (
        round(median(took_ms), 2), round(last, 2),
    )  # fmt: skip
    report.expect(last < REFUSED_WITHIN_MS, f"429 parked_full within {REFUSED_WITHIN_MS:g} ms")
    return report


def cpu_us(figures: dict[str, float]) -> float:
    return figures["cpu_s"] / figures["chunks_per_s"] * 1e6


def ratio(found: dict[str, list[dict[str, float]]], name: str | None) -> float:
    """Beside over alone; without a name of CPU time per chunk."""
    alone, beside = (
        median(cpu_us(f) if name is None else f[name] for f in found[which])
        for which in ("alone", "beside")
    )
    return beside / alone


@contextmanager
def gateway(folder: Path, core: str, load_core: str) -> Iterator[tuple[Group, int]]:
    """Ours as it ships, but for a bound of parked requests that is reached at once."""
    with ExitStack() as stack:
        upstream = processes.free_port()
        objects = cluster.objects(MOCK_IP, upstream)
        kubeconfig = stack.enter_context(cluster.api_server(objects, folder))
        mock = [str(native.program("mock")), MOCK_IP, str(upstream), str(CHUNKS), str(GAP_US)]
        log = folder / "mock.txt"
        stack.enter_context(processes.pinned(mock, load_core, log))
        processes.until_answering(MOCK_IP, upstream, measure.request("demo"), log)
        port, log = processes.free_port(), folder / "gateway.txt"
        command = [
            sys.executable, "-m", "spotinference", "gateway", "run",
            "--kubeconfig", str(kubeconfig), "--keys-file", str(cluster.keys_file(folder)),
            "--host", "127.0.0.1", "--port", str(port), "--metrics-port", "0",
            "--announce", str(folder / "announce.json"), "--log-level", "warning",
        ]  # fmt: skip
        environment = {
            "SPOTINFERENCE_GATEWAY_MAX_PARKED": str(PARKED),
            "SPOTINFERENCE_GATEWAY_USAGE_SPOOL": str(folder / "usage"),
        }
        group = stack.enter_context(processes.pinned(command, core, log, environment))
        processes.until_answering("127.0.0.1", port, measure.request("demo"), log)
        yield group, port


@contextmanager
def parked(port: int, count: int) -> Iterator[None]:
    """So many streams of a sleeping tier wait while the block runs."""
    request = measure.request("asleep", stream=True)
    with ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            client.sendall(request)
        yield


def refusals_ms(port: int) -> list[float]:
    """From request to status line, each over the same connection, in order of size."""
    request = measure.request("asleep", stream=True)
    took: list[float] = []
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        for _ in range(REFUSED):
            began = time.perf_counter()
            client.sendall(request)
            answer = client.recv(65536)
            took.append((time.perf_counter() - began) * 1000)
            if not answer.startswith(b"HTTP/1.1 429 "):
                raise errors.ConfigInvalid(f"no refusal, but {answer[:80]!r}")
    return sorted(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.exit(run(options.rounds).print(as_json=options.json))


if __name__ == "__main__":
    try:
        main()
    except errors.SpotinferenceError as error:
        sys.exit(f"error: {error}")
