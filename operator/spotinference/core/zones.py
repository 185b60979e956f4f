"""In which zones a volume can be mounted, by its own node affinity."""

from __future__ import annotations

from spotinference.api import names
from spotinference.api.kinds import Json

ZONE_KEYS = frozenset(
    {
        names.ZONE_LABEL,
        "failure-domain.beta.kubernetes.io/zone",
        "topology.gke.io/zone",
        "topology.ebs.csi.aws.com/zone",
        "topology.disk.csi.azure.com/zone",
    }
)
"""Labels that name a zone; each cloud's disk driver has one of its own, with the same values."""


def volume_zones(volume: Json) -> frozenset[str] | None:
    """The zones that a PersistentVolume allows; None: it says nothing of zones.

    Terms are alternatives, so one that names no zone allows all.
    """
    required = ((volume.get("spec") or {}).get("nodeAffinity") or {}).get("required") or {}
    terms = required.get("nodeSelectorTerms") or ()
    allowed: set[str] = set()
    for term in terms:
        zones = _zones_of(term)
        if zones is None:
            return None
        allowed |= zones
    return frozenset(allowed) if terms else None


def _zones_of(term: Json) -> set[str] | None:
    found: set[str] | None = None
    for wanted in term.get("matchExpressions") or ():
        if wanted.get("key") in ZONE_KEYS and wanted.get("operator") == "In":
            values = set(wanted.get("values") or ())
            found = values if found is None else found & values
    return found
