"""The manifests of five tiers, as files to read in a review. `UPDATE_GOLDEN=1` writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from spotinference.api.kinds import Json
from spotinference.api.pool import PoolSpec
from spotinference.api.tier import TierSpec
from spotinference.core import manifests, weights
from spotinference.core.diff import stamped
from spotinference.core.observed import Market, OperatorSettings, TierRef

FOLDER = Path(__file__).parent / "manifests"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SETTINGS = OperatorSettings(image="ghcr.io/spotinference/spotinference:0.1.0")

SPOT = PoolSpec.model_validate(
    {
        "capacityType": "spot",
        "provider": "gke",
        "nodeSelector": {"cloud.google.com/gke-spot": "true"},
        "tolerations": [
            {"key": "nvidia.com/gpu", "effect": "NoSchedule"},
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"},
        ],
        "zones": ["europe-west4-a"],
    }
)
TIERS: dict[str, Json] = {
    "minimal": {"model": {"source": "hf://Qwen/Qwen3-8B"}},
    "gated": {
        "model": {
            "source": "hf://meta-llama/Llama-3.1-8B-Instruct",
            "servedName": "llama",
            "aliases": ["gpt-4o-mini"],
            "tokenSecretRef": {"name": "hub"},
        },
        "cache": {"retain": False, "storageClassName": "filestore", "size": "40Gi"},
    },
    "zonal": {
        "model": {"source": "hf://Qwen/Qwen3-8B"},
        "cache": {"accessMode": "ReadWriteOnce", "size": "60Gi"},
    },
    "quantised": {
        "model": {"source": "hf://Qwen/Qwen3-32B-AWQ", "revision": "release"},
        "engine": {
            "quantization": "awq",
            "kvCacheDtype": "fp8",
            "tensorParallelSize": 2,
            "maxModelLen": 32768,
            "maxNumSeqs": 128,
            "gpuMemoryUtilization": "0.92",
            "toolCallParser": "hermes",
            "reasoningParser": "qwen3",
            "extraArgs": ["--seed=7"],
            "env": [{"name": "OMP_NUM_THREADS", "value": "4"}],
            "startup": "20m",
        },
        "resources": {"gpu": {"count": 2}, "cpu": "8", "memory": "64Gi", "sharedMemory": "8Gi"},
        "interruption": {"drain": "60s"},
    },
    "own-claim": {"model": {"source": "pvc://models/llama/8b"}},
}


class _Plain(yaml.SafeDumper):
    """Written out in full: an alias is nothing to read in a review."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def rendered(name: str) -> str:
    spec = TierSpec.model_validate({"placement": {"pools": ["spot"]}, **TIERS[name]})
    subject = manifests.Subject(TierRef("team-a", name), f"uid-{name}", spec, SETTINGS)
    zone = "europe-west4-a" if spec.cache.access_mode == "ReadWriteOnce" else None
    fetched = weights.needs_fetching(spec)
    bodies = [body for _, body in manifests.fixed_children(subject)]
    bodies.append(manifests.cache_claim(subject, zone))
    if fetched:
        bodies.append(manifests.cache_job(subject, zone, spec.model.revision))
    market = Market("spot", "europe-west4-a")
    commit = COMMIT if fetched else None
    bodies.append(manifests.engine_deployment(subject, market, SPOT, commit, replicas=0))
    stamps = [stamped(b) for b in bodies]
    return str(yaml.dump_all(stamps, Dumper=_Plain, sort_keys=False, width=100))


@pytest.mark.parametrize("name", sorted(TIERS))
def test_the_manifests_of_a_tier_are_those_that_were_reviewed(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(rendered(name))
    assert rendered(name) == path.read_text(), "review the change, then UPDATE_GOLDEN=1"


def test_every_golden_file_belongs_to_a_tier() -> None:
    assert {p.stem for p in FOLDER.glob("*.yaml")} == set(TIERS)


@pytest.mark.parametrize("name", sorted(TIERS))
def test_rendering_twice_gives_the_same_bytes(name: str) -> None:
    assert rendered(name) == rendered(name)
