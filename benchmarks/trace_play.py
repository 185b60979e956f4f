"""A recorded spot market in the embedded cluster while clients stream, against its prediction.

    python -m benchmarks.trace_play [--hours 6] [--begin 18] [--speed 60] [--traces FOLDER] [--json]

Three replicas on the three zones of a public trace (on-demand at three times the price as the
bridge), played 60 times faster; clients ask one after the other all the while. Every answer must be
whole and the same as the undisturbed one. Availability (share of the time with three replicas
ready) and cost (the cluster's bill) must lie within a tenth of what `spotinference simulate tier`
says for the same trace, with boot and load times as measured before the play.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from benchmarks.report import Report
from spotinference.api import parse, times
from spotinference.api.pool import PoolSpec
from spotinference.cli.dev_trace import script
from spotinference.core.observed import Market
from spotinference.devcluster import billing
from spotinference.devcluster.agent import BILL_FILE
from spotinference.devcluster.client import Answer, ask, percentile
from spotinference.devcluster.handle import ClusterHandle, cluster
from spotinference.simulate import tier, traces
from spotinference.simulate.autoscale_service import ConstantRate
from spotinference.simulate.autoscale_workload import Arrivals
from spotinference.simulate.operated import Operated

TRACES = Path(__file__).parents[2] / "shared" / "traces" / "spot" / "spothedge" / "AWS1"
SPOT_USD, STEADY_USD = 1.0, 3.0
REPLICAS = 3
WARM_S = 120.0
"""The prediction begins so long before the play, with the markets as they are at its beginning."""
TOKENS, TOKENS_PER_S = 200, 20
PROMPTS = 6
POLL_S = 0.25


def topology(zones: list[str]) -> str:
    markets = ", ".join(f"{{zone: {zone}, capacity: 4}}" for zone in zones)
    return f"""
pools:
  - name: spot
    provider: generic
    bootDelay: 3s
    idleAfter: 60s
    notice: 0s
    price: {SPOT_USD}
    markets: [{markets}]
  - name: steady
    capacityType: on-demand
    provider: generic
    bootDelay: 3s
    idleAfter: 60s
    price: {STEADY_USD}
    markets: [{{zone: {zones[0]}, capacity: 8}}]
engine: {{startDelay: 3s, tokensPerSecond: {TOKENS_PER_S}}}
"""


TIER = f"""
apiVersion: spotinference.dev/v1alpha1
kind: InferenceTier
metadata: {{name: played, namespace: default}}
spec:
  model: {{source: hf://spotinference/demo}}
  placement: {{pools: [spot, steady]}}
  scaling: {{minReplicas: {REPLICAS}, maxReplicas: 6, targetRunning: 1000, targetWaiting: 1000}}
  resources: {{cpu: 100m, memory: 128Mi, sharedMemory: 16Mi}}
  interruption: {{drain: 1s}}
  cache: {{size: 1Gi, storageClassName: shared, retain: false}}
"""


@dataclass(slots=True)
class Clients:
    """Ask one after the other until told to stop."""

    bed: ClusterHandle
    expected: dict[int, str] = field(default_factory=dict)
    answers: list[tuple[int, Answer]] = field(default_factory=list)
    stopping: bool = False

    async def one(self, session: aiohttp.ClientSession, number: int) -> Answer:
        return await ask(
            session,
            self.bed.gateway_url,
            self.bed.api_key,
            "played",
            prompt=f"story number {number}",
            max_tokens=TOKENS,
            ignore_eos=True,
        )

    async def learn(self, session: aiohttp.ClientSession) -> None:
        """The undisturbed answer to each prompt."""
        found = await asyncio.gather(*(self.one(session, n) for n in range(PROMPTS)))
        self.expected = {n: answer.text for n, answer in enumerate(found)}

    async def go_on(self, session: aiohttp.ClientSession, client: int) -> None:
        for turn in itertools.count():
            if self.stopping:
                return
            number = (client + turn) % PROMPTS
            self.answers.append((number, await self.one(session, number)))


@dataclass(slots=True)
class Watch:
    """How long at least so many replicas were ready."""

    bed: ClusterHandle
    seconds: float = 0.0
    enough: float = 0.0

    async def run(self) -> None:
        last, was_enough = time.monotonic(), True
        while True:
            ready = await ready_pods(self.bed)
            now = time.monotonic()
            self.seconds += now - last
            self.enough += now - last if was_enough else 0.0
            last, was_enough = now, len(ready) >= REPLICAS
            await asyncio.sleep(POLL_S)


async def ready_pods(bed: ClusterHandle) -> list[dict[str, Any]]:
    nodes = {n["metadata"]["name"] for n in await bed.gpu_nodes()}
    return [
        pod
        for pod in await bed.engine_pods("played")
        if _condition(pod, "Ready") is not None
        and pod["spec"].get("nodeName") in nodes
        and not pod["metadata"].get("deletionTimestamp")
    ]


def _condition(pod: dict[str, Any], kind: str) -> datetime | None:
    for condition in pod.get("status", {}).get("conditions", []):
        if condition["type"] == kind and condition["status"] == "True":
            return times.parse(condition["lastTransitionTime"])
    return None


async def stages(bed: ClusterHandle) -> tuple[float, float]:
    """Medians of creation → node and node → ready of the replicas there are, in seconds.

    Kubernetes writes whole seconds: half a second is what they miss on average at both ends.
    """
    boot, load = [], []
    for pod in await ready_pods(bed):
        created = times.parse(pod["metadata"]["creationTimestamp"])
        bound, ready = _condition(pod, "PodScheduled"), _condition(pod, "Ready")
        assert bound is not None
        assert ready is not None
        boot.append((bound - created).total_seconds())
        load.append((ready - bound).total_seconds())
    return statistics.median(boot), statistics.median(load)


def billed(bed: ClusterHandle, begin: datetime, end: datetime) -> float:
    """Dollars of GPU nodes between two moments."""
    usd, open_ = 0.0, {}
    for event in billing.read(bed.paths.root / BILL_FILE):
        node, at = str(event["node"]), times.parse(str(event["at"]))
        if event["event"] == "launch":
            open_[node] = (at, float(str(event["microUsdPerHour"])) / 1e6)
        elif event["event"] == "end" and node in open_:
            usd += _cost(*open_.pop(node), at, begin, end)
    return usd + sum(_cost(at, price, end, begin, end) for at, price in open_.values())


def _cost(begun: datetime, price: float, gone: datetime, begin: datetime, end: datetime) -> float:
    lasted = min(gone, end) - max(begun, begin)
    return max(timedelta(), lasted).total_seconds() / 3600 * price


def predict(
    options: argparse.Namespace,
    zones: dict[Market, traces.Zone],
    pools: dict[str, PoolSpec],
    measured: tuple[float, float],
) -> tuple[float, float]:
    """Availability and dollars that `simulate tier` says for the time of the play."""
    spec = parse.parse_tier(yaml.safe_load(TIER))
    length_s = options.hours * 3600 / options.speed
    changes, _ = script(zones, options.speed, options.begin, options.hours)
    at_once = {market: _stepped(market, changes, length_s) for market in zones}

    def replayed(seconds: float) -> tier.Outcome:
        ticks = int(seconds)
        load = [options.clients / (TOKENS / TOKENS_PER_S)] * ticks
        setup = tier.Setup(
            spec,
            pools,
            at_once,
            Arrivals(1.0, load, load, [TOKENS * n for n in load]),
            ConstantRate(10.0, 1000.0),
            boot_s=measured[0],
            load_s=measured[1],
            seed=options.seed,
        )
        return tier.replay(setup, Operated(spec, pools))

    before, whole = replayed(WARM_S), replayed(WARM_S + length_s)
    return 1.0 - (whole.short_s - before.short_s) / length_s, whole.usd - before.usd


def _stepped(market: Market, changes: list[Any], length_s: float) -> traces.Zone:
    """The market's capacity per second of the play, after a calm beginning."""
    mine = [c for c in changes if c.market == market]
    steps = [mine[0].capacity] * int(WARM_S)
    for second in range(int(length_s) + 1):
        steps.append([c.capacity for c in mine if c.at_s <= second + 0.5][-1])
    return traces.Zone(str(market), 1.0, tuple(steps))


async def measure(options: argparse.Namespace) -> Report:
    report = Report(
        f"{options.hours:g} h of {options.traces.name} from hour {options.begin:g}, "
        f"{options.speed:g} times faster, {options.clients} clients"
    )
    files = sorted(options.traces.glob("*.json"))[:3]
    names = [file.stem.split("_")[0] for file in files]
    zones = {Market("spot", n): zone for n, zone in zip(names, traces.load(files), strict=True)}
    async with (
        cluster("bench-trace", topology=topology(names)) as bed,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        for market, zone in zones.items():
            await bed.set_capacity(market.pool, market.zone, zone.at(options.begin * 3600))
        pools = {n: parse.parse_pool(await bed.pool(n)) for n in ("spot", "steady")}
        await bed.apply(TIER)
        await bed.tier_until(
            "played", lambda t: t.get("status", {}).get("readyReplicas", 0) >= REPLICAS,
            deadline_s=180,
        )  # fmt: skip
        measured = await stages(bed)
        clients, watch = Clients(bed), Watch(bed)
        await clients.learn(session)
        print("playing …", file=sys.stderr)
        begin = datetime.now(tz=times.parse("2026-01-01T00:00:00Z").tzinfo)
        watching = asyncio.create_task(watch.run())
        asking = [asyncio.create_task(clients.go_on(session, n)) for n in range(options.clients)]
        arguments = [f"{m}={f}" for m, f in zip(zones, files, strict=True)]
        length_s = options.hours * 3600 / options.speed
        said = await bed.dev(
            "trace", "play", *arguments, "--speed", str(options.speed),
            "--begin", str(options.begin), "--hours", str(options.hours),
            "--seed", str(options.seed), timeout_s=length_s + 120,
        )  # fmt: skip
        end = datetime.now(tz=begin.tzinfo)
        watching.cancel()
        print(said, file=sys.stderr)
        for market in zones:
            await bed.set_capacity(market.pool, market.zone, 4)
        clients.stopping = True
        await asyncio.gather(*asking)
        usd = billed(bed, begin, end)
    availability, predicted_usd = predict(options, zones, pools, measured)
    found = watch.enough / watch.seconds
    report.row(of="cluster", availability=f"{found:.4f}", usd=f"{usd:.4f}")
    report.row(of="simulate tier", availability=f"{availability:.4f}", usd=f"{predicted_usd:.4f}")
    whole = [a for n, a in clients.answers if a.complete and a.text == clients.expected[n]]
    stalls = [a.longest_stall_s for _, a in clients.answers]
    report.facts["boot_s, load_s (measured)"] = measured
    report.facts["answers"] = len(clients.answers)
    report.facts["longest stall, s"] = percentile(stalls, 1.0)
    for _, answer in [pair for pair in clients.answers if pair[1] not in whole][:3]:
        report.facts[f"not whole: {answer.error}"] = answer.status
    report.expect(len(whole) == len(clients.answers), f"all {len(clients.answers)} answers whole")
    report.expect(abs(found - availability) <= 0.1 * availability, "availability within a tenth")
    report.expect(abs(usd - predicted_usd) <= 0.1 * predicted_usd, "cost within a tenth")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, default=TRACES, help="folder of zone files")
    parser.add_argument("--begin", type=float, default=18.0, help="hour of the trace")
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--speed", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not list(options.traces.glob("*.json")):
        print(f"no traces in {options.traces}: name a folder of zone files with --traces")
        sys.exit(0)
    sys.exit(asyncio.run(measure(options)).print(as_json=options.json))


if __name__ == "__main__":
    main()
