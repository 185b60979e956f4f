"""Whether a node can be counted on, in degrees, by what was seen of it.

Two witnesses: the kubelet's Lease, and the engines on the node, which the operator scrapes anyway.
An engine that does not answer on a node that renews is its pod's trouble, not the node's: the
gateway leaves it and the kubelet restarts it. The first rule that fits wins:

1. no node object: gone;
2. the kubelet says itself that it is not ready: stale;
3. the Lease is unchanged for 30 s, or for 20 s while no engine there answers: silent, so stale;
4. unless it is held (`held`): many nodes fell silent at once, and engines on this one answer; also
   while such a hiccup ends, node by node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spotinference.api.kinds import Json
from spotinference.core.notices import condition
from spotinference.core.observed import NodeHealth

LEASE_STALE_S = 30.0
"""Three missed kubelet renewals (every 10 s): the node is silent."""
SUSPECT_S = 20.0
"""Two missed renewals: enough when the engines on it do not answer either."""
UNREACHABLE_S = 5.0
"""So long no engine answered: more than a lost packet or a slow moment."""
ANSWERED_S = 10.0
"""An engine that answered within this time lives: scrapes come at least each 5 s."""
MANY = 2
MANY_SHARE = 0.5
"""Silent nodes, of those that carry replicas, from which on the fault is more likely between all of
them and the API server than in each of them."""
HOLD_S = 300.0
"""A hold ends after this, whatever the reason: Kubernetes itself evicts after five minutes."""


@dataclass(frozen=True, slots=True)
class Contact:
    """What scraping the engines on one node showed."""

    answered_ago_s: float | None = None
    """since the last answer of any; None: never"""
    failing_s: float = 0.0
    """for how long none of those that were ready answers"""


@dataclass(frozen=True, slots=True)
class Witness:
    """One node as it was last seen."""

    lease_age_s: float
    """seconds since its kube-node-lease was *seen* to change, by our own monotonic clock"""
    contact: Contact = Contact()
    ready: bool = True
    """what its object says; Kubernetes takes some seconds to take *Unknown* back"""


def silent(witness: Witness) -> bool:
    """Whether the kubelet has stopped renewing."""
    if witness.lease_age_s > LEASE_STALE_S:
        return True
    return witness.lease_age_s > SUSPECT_S and witness.contact.failing_s >= UNREACHABLE_S


def held(
    nodes: Mapping[str, Witness], holding_for_s: float, before: frozenset[str] = frozenset()
) -> frozenset[str]:
    """Silent nodes that are not acted upon: many at once, and their engines answer.

    Those that were held `before` are until they are back altogether: nodes come back one by one, and
    the last of them is no more lost than the first.

    When a zone is reclaimed at once its engines answer no more, so nothing is held. When the API
    server hiccups, or the way to it, engines go on serving: replacing them all would double the
    bill and, with volumes that one node may mount, replace what runs by what cannot start.
    """
    if holding_for_s >= HOLD_S:
        return frozenset()
    quiet = {name for name, witness in nodes.items() if silent(witness)}
    back = {name for name, witness in nodes.items() if witness.ready} - quiet
    fresh = quiet if len(quiet) >= max(MANY, MANY_SHARE * len(nodes)) else frozenset()
    kept = (before & nodes.keys()) - back
    return frozenset(name for name in {*fresh, *kept} if answers(nodes[name].contact))


def health_of(node: Json | None, witness: Witness | None, *, hold: bool = False) -> NodeHealth:
    """The verdict. `witness` None: no Lease is known (a node in its first seconds), then Ready
    decides alone.
    """
    if node is None:
        return NodeHealth.GONE
    ready = readiness(node)
    if ready == "False":
        return NodeHealth.STALE
    if hold:
        return NodeHealth.HEALTHY
    if ready != "True" or (witness is not None and silent(witness)):
        return NodeHealth.STALE
    return NodeHealth.HEALTHY


def readiness(node: Json) -> str:
    """`True`, `False`, or `Unknown`, which is Kubernetes' word for a kubelet that is silent."""
    return str((condition(node, "Ready") or {}).get("status", "True"))


def answers(contact: Contact) -> bool:
    """Whether an engine there has just answered: the machine lives, whatever its kubelet does."""
    return contact.answered_ago_s is not None and contact.answered_ago_s <= ANSWERED_S
