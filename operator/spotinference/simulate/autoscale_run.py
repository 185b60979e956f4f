"""One replay of one policy from its names and numbers: what the command and the benchmarks call."""

from __future__ import annotations

from spotinference import errors
from spotinference.core import sizing
from spotinference.simulate import autoscale_policies as baselines
from spotinference.simulate.autoscale import Outcome, Policy, Setup, Timeline, replay, score
from spotinference.simulate.autoscale_operator import operator
from spotinference.simulate.autoscale_ours import Ours
from spotinference.simulate.autoscale_workload import Arrivals

POLICIES = ("ours", "hpa", "kpa", "keda-waiting", "static-peak", "oracle", "operator")
NO_BOUND = 10**9


def run(name: str, arrivals: Arrivals, setup: Setup) -> tuple[Outcome, Timeline]:
    """The figures and the timeline; `ConfigInvalid` for a name that is not in `POLICIES`."""
    line = replay(arrivals, setup, policy(name, arrivals, setup))
    return score(line, setup), line


def policy(name: str, arrivals: Arrivals, setup: Setup) -> Policy:
    """A fresh one. Only `static-peak` and `oracle` are shown the workload."""
    match name:
        case "ours":
            return Ours(rules(setup))
        case "operator":
            return operator(setup)
        case "hpa":
            return baselines.Hpa()
        case "kpa":
            return baselines.Kpa()
        case "keda-waiting":
            return baselines.KedaWaiting()
        case "static-peak":
            return baselines.static_peak(_works(arrivals, setup), arrivals.tick_s)
        case "oracle":
            works = _works(arrivals, setup)
            return baselines.oracle(works, arrivals.tick_s, setup.cold_start_s)
    raise errors.ConfigInvalid(f"--policy is {name!r}; it must be one of {', '.join(POLICIES)}")


def rules(setup: Setup) -> sizing.Rules:
    """What our policy is told of the tier."""
    return sizing.Rules(
        cold_start_s=setup.cold_start_s, least=setup.least, most=setup.most or NO_BOUND
    )


def _works(arrivals: Arrivals, setup: Setup) -> list[float]:
    """Replica-seconds that arrive, by tick, up to the end of what is scored."""
    end = round(setup.last * len(arrivals.requests))
    return [
        setup.service.work(
            arrivals.requests[i], arrivals.prompt_tokens[i], arrivals.output_tokens[i]
        )
        for i in range(end)
    ]
