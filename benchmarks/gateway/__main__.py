"""The gateway beside its peers: added delay per token, requests per core, overload, memory.

    python -m benchmarks.gateway [--quick] [--rounds 5] [--only NAME …] [--markdown FILE] [--json]
                                 [--realtime]
    python -m benchmarks.gateway --soak 3600

Two cores: the system under measurement alone on one, mock engine and load generator on the other.
Systems take turns within each round; every figure is the median over the rounds. CPU time per
request and per chunk is read from /proc, so it holds on a machine that does other work too. With
`--realtime` other work waits instead: all that takes part, each peer alike, runs under SCHED_RR.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway import cluster, measure, memory, native, processes, soak
from benchmarks.gateway.install import Missing
from benchmarks.gateway.measure import Load, Target
from benchmarks.gateway.peers import DIRECT, MODEL, OURS, PEERS, Peer, Upstream
from benchmarks.gateway.processes import Group, NotReady
from benchmarks.gateway.results import Results, machine
from spotinference import errors

MOCK_IP = "127.10.0.5"
GAP_US = 20_000
NAMES = tuple(peer.name for peer in PEERS)


@dataclass(frozen=True, slots=True)
class Plan:
    rounds: int
    loads: dict[str, Load]
    chunks: int
    """per streamed answer"""
    memory_requests: int
    admitted: Load
    """as many streams as the gateway is told to admit (max_answers)"""
    overload: Load
    """offered to the same gateway"""
    beside: Load
    """streams that run alone, and beside `parked` requests that wait for another tier"""
    parked: int


def plan(*, quick: bool, rounds: int) -> Plan:
    if quick:
        return Plan(
            rounds=1,
            loads={"plain": Load("plain", 32, 1), "100": Load("stream", 100, 1)},
            chunks=50,
            memory_requests=100,
            admitted=Load("stream", 50, 1),
            overload=Load("stream", 400, 1),
            beside=Load("stream", 50, 2),
            parked=50,
        )
    return Plan(
        rounds=rounds,
        loads={
            "plain": Load("plain", 32, 4),
            "500": Load("stream", 500, 6),
            "1000": Load("stream", 1000, 6),
        },
        chunks=250,
        memory_requests=500,
        admitted=Load("stream", 500, 6),
        overload=Load("stream", 4000, 6),
        beside=Load("stream", 200, 24),
        parked=200,
    )


@dataclass(frozen=True, slots=True)
class Bench:
    plan: Plan
    upstream: Upstream
    folder: Path
    results: Results
    proxy_core: str
    load_core: str

    def measure_direct(self) -> None:
        target = Target(self.upstream.ip, self.upstream.port, MODEL)
        for name, load in self.plan.loads.items():
            self.results.add(DIRECT, name, measure.run(target, load, None, self.load_core))

    def measure_peer(self, peer: Peer, number: int) -> None:
        """One round of one peer; one that cannot be had or started is noted as such."""
        if peer.name in self.results.missing:
            return
        port = processes.free_port()
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        log = folder / "log.txt"
        try:
            launch = peer.launch(self.upstream, port, folder)
            self.results.versions[peer.name] = launch.version
            with processes.pinned(
                launch.command, self.proxy_core, log, launch.environment
            ) as group:
                processes.until_answering("127.0.0.1", port, measure.request(peer.model), log)
                target = Target("127.0.0.1", port, peer.model)
                for name, load in self.plan.loads.items():
                    figures = measure.run(target, load, group, self.load_core)
                    self.results.add(peer.name, name, figures)
                self.results.add(peer.name, "rss", {"mib": group.rss_bytes() / 2**20})
        except (Missing, NotReady) as problem:
            self.results.missing[peer.name] = str(problem)
        print(f"round {number}: {peer.name}", file=sys.stderr)

    def measure_own(self) -> None:
        """One round of memory and overload, of our gateway alone."""
        count = self.plan.memory_requests
        for model, name in ((MODEL, "live"), ("asleep", "parked")):
            with self.own() as (group, port):
                kib = memory.per_request(group, "127.0.0.1", port, model, count)
            self.results.add(OURS, name, {"kib": kib})
        for name, load in (("alone", self.plan.admitted), ("overload", self.plan.overload)):
            limit = str(self.plan.admitted.concurrency)
            with self.own(max_answers=limit) as (group, port):
                figures = measure.run(Target("127.0.0.1", port, MODEL), load, group, self.load_core)
            self.results.add(OURS, name, figures)

    def measure_beside(self) -> None:
        """Live streams alone and beside parked requests, in turns (there, back): what waits may cost
        them nothing. Long enough to see who waits get a status and signs of life, as shipped.
        """
        count = self.plan.parked
        with self.own() as (group, port):
            target = Target("127.0.0.1", port, MODEL)
            for waiting in (0, count, count, 0):
                with memory.open_requests("127.0.0.1", port, "asleep", waiting):
                    figures = measure.run(target, self.plan.beside, group, self.load_core)
                self.results.add(OURS, "beside parked" if waiting else "beside none", figures)

    def measure_scaling(self) -> None:
        """One worker alone on its core, the load on another; then two on both. With fewer than
        four cores the second of them shares its core with the load, so the gain is a lower bound.
        """
        cores = _cores()
        both, load_cores = ",".join(cores[-2:]), ",".join(cores[:-2]) or self.load_core
        load = Load("plain", 128, self.plan.loads["plain"].seconds)
        for workers, where in ((1, self.proxy_core), (2, both)):
            with self.own("--workers", str(workers), cores=where) as (group, port):
                figures = measure.run(Target("127.0.0.1", port, MODEL), load, group, load_cores)
            self.results.add(f"workers {workers}", "plain", figures)

    @contextmanager
    def own(
        self, *more: str, cores: str | None = None, **settings: str
    ) -> Iterator[tuple[Group, int]]:
        """Our gateway; `settings` by their names."""
        peer = PEERS[0]
        port = processes.free_port()
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        log = folder / "log.txt"
        launch = peer.launch(self.upstream, port, folder)
        environment = launch.environment | {
            f"SPOTINFERENCE_GATEWAY_{name.upper()}": value for name, value in settings.items()
        }
        command = [*launch.command, *more]
        with processes.pinned(command, cores or self.proxy_core, log, environment) as group:
            processes.until_answering("127.0.0.1", port, measure.request(MODEL), log)
            yield group, port


@contextmanager
def _realtime() -> Iterator[None]:
    try:
        with processes.before_other_work():
            yield
    except PermissionError as error:
        raise errors.ConfigInvalid(
            "--realtime needs root (or CAP_SYS_NICE); without it the figures are those of a machine "
            "that does its other work too"
        ) from error


def run(options: argparse.Namespace) -> Results:
    cores = _cores()
    if len(cores) < 2:
        raise errors.ConfigInvalid("two cores are needed: one for the proxy, one for the load")
    proxy_core, load_core = cores[-1], cores[0]
    chosen = plan(quick=options.quick, rounds=options.rounds)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    results = Results(
        f"{chosen.rounds} round(s), {chosen.chunks} chunks per stream, one each "
        f"{GAP_US // 1000} ms; {machine()}"
    )
    peers = [p for p in PEERS if not options.only or p.name in options.only]
    with ExitStack() as stack:
        if options.realtime:
            stack.enter_context(_realtime())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spot-bench-")))
        port = processes.free_port()
        kubeconfig = stack.enter_context(cluster.api_server(cluster.objects(MOCK_IP, port), folder))
        upstream = Upstream(MOCK_IP, port, kubeconfig, cluster.keys_file(folder))
        mock = [str(native.program("mock")), MOCK_IP, str(port), str(chosen.chunks), str(GAP_US)]
        log = folder / "mock.txt"
        stack.enter_context(processes.pinned(mock, load_core, log))
        processes.until_answering(MOCK_IP, port, measure.request(MODEL), log)
        bench = Bench(chosen, upstream, folder, results, proxy_core, load_core)
        if options.soak:
            with bench.own() as (group, port):
                target = Target("127.0.0.1", port, MODEL)
                sys.exit(0 if soak.run(target, group, load_core, options.soak) else 1)
        for number in range(1, chosen.rounds + 1):
            bench.measure_direct()
            for peer in peers:
                bench.measure_peer(peer, number)
            if not options.only or OURS in options.only:
                bench.measure_own()
                bench.measure_beside()
                bench.measure_scaling()
    return results


def _cores() -> list[str]:
    return [str(core) for core in sorted(os.sched_getaffinity(0))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a minute or two")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="of: " + ", ".join(NAMES))
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    parser.add_argument(
        "--soak", type=float, metavar="SECONDS", help="only: is the memory flat over this time?"
    )
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="run all that takes part before the machine's other work (SCHED_RR; needs root)",
    )
    parser.add_argument("--json", action="store_true", help="print every round instead of tables")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # ends what was started, too
    results = run(options)
    if options.markdown:
        options.markdown.write_text(results.markdown())
    if options.json:
        print(results.as_json())
    else:
        results.print()


if __name__ == "__main__":
    try:
        main()
    except errors.SpotinferenceError as error:
        sys.exit(f"error: {error}")
