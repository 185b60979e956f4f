"""In which zones a volume can be mounted."""

from __future__ import annotations

import pytest

from spotinference.api.kinds import Json
from spotinference.core.zones import volume_zones


def volume(*terms: dict[str, list[str]]) -> Json:
    shown = [
        {"matchExpressions": [{"key": k, "operator": "In", "values": v} for k, v in term.items()]}
        for term in terms
    ]
    return {"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": shown}}}}


@pytest.mark.parametrize(
    ("body", "zones"),
    [
        ({"spec": {}}, None),
        (volume(), None),
        (volume({"topology.kubernetes.io/zone": ["a"]}), {"a"}),
        (volume({"topology.gke.io/zone": ["a"]}, {"topology.gke.io/zone": ["b"]}), {"a", "b"}),
        (volume({"topology.ebs.csi.aws.com/zone": ["a"], "other": ["x"]}), {"a"}),
        (volume({"topology.kubernetes.io/zone": ["a"]}, {"kubernetes.io/hostname": ["n"]}), None),
        (volume({"kubernetes.io/hostname": ["n"]}), None),
    ],
)
def test_the_zones_of_a_volume(body: Json, zones: set[str] | None) -> None:
    assert volume_zones(body) == zones
