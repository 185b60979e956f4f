"""Our policy in the autoscale simulator: the operator's own functions, fed by the replay."""

from __future__ import annotations

from dataclasses import dataclass, field

from spotinference.core import sizing
from spotinference.simulate.autoscale import Signals


@dataclass(slots=True)
class Ours:
    rules: sizing.Rules
    every_s: float = 10.0
    memory: sizing.Memory = field(default_factory=sizing.Memory)

    def decide(self, signals: Signals) -> int:
        reading = reading_of(signals, at_s=signals.at_s)
        self.memory = sizing.learn(self.memory, reading, self.rules)
        return sizing.size(self.memory, reading, self.rules).wanted


def reading_of(signals: Signals, at_s: float) -> sizing.Reading:
    """As the operator's learner would read the replicas."""
    return sizing.Reading(
        at_s=at_s,
        arrived=signals.arrived,
        finished=signals.served,
        tokens=signals.served_tokens,
        busy_s=signals.running_s / signals.concurrency,
        up_s=signals.up_s,
        waiting=signals.waiting,
        running=signals.running,
        ready=signals.ready,
        starting=signals.starting,
    )
