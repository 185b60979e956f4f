"""What a provider shows on a node before it takes it away: one table.

Sources: the providers' documentation of their spot machines. Applied by `nodes.py`; the operator
has its own reading of the same signs and must not import this.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from spotinference.api import times
from spotinference.api.kinds import Json
from spotinference.devcluster.topology import Provider


@dataclass(frozen=True, slots=True)
class Signs:
    """Changes to the Node object, an Event, and what happens to the node's pods."""

    taints: tuple[Json, ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
    cordon: bool = False
    shutting_down: bool = False
    """Graceful node shutdown: Ready=False, and the kubelet ends its pods within the notice."""
    drain: bool = False
    """The provider evicts the pods (Eviction API, so disruption budgets are asked)."""
    event: tuple[str, str] | None = None
    """(reason, message)"""


def signs(provider: Provider, deadline: datetime) -> Signs:
    match provider:
        case "gke":
            return Signs(shutting_down=True)
        case "eks":
            return Signs(cordon=True, drain=True)
        case "karpenter":
            return Signs(
                taints=({"key": "karpenter.sh/disrupted", "effect": "NoSchedule"},),
                annotations=(
                    ("karpenter.sh/nodeclaim-termination-timestamp", times.to_text(deadline)),
                ),
                drain=True,
                event=("SpotInterrupted", "Spot interruption warning was triggered"),
            )
        case "nth":
            taint = {
                "key": "aws-node-termination-handler/spot-itn",
                "value": "spot-itn",
                "effect": "NoSchedule",
            }
            return Signs(taints=(taint,), cordon=True, drain=True)
        case "aks":
            taint = {
                "key": "remediator.kubernetes.azure.com/unschedulable",
                "effect": "NoSchedule",
            }
            return Signs(taints=(taint,), drain=True)
        case "generic":
            return Signs(
                taints=({"key": GENERIC_TAINT, "effect": "NoSchedule"},),
            )


GENERIC_TAINT = "spotinference.dev/impending-interruption"
"""For providers that show nothing: what an administrator's own script would put on the node."""
