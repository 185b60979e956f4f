"""What a real API server says to right and wrong tiers and pools."""

from __future__ import annotations

import json

import pytest
import yaml

from spotinference.api import flags
from spotinference.api.kinds import Json
from tests.support import specs
from tests.support.cluster import LiveCluster
from tests.support.specs import WRONG_POOLS, WRONG_TIERS, Wrong

pytestmark = pytest.mark.cluster

APPLY = ("apply", "-f", "-", "--dry-run=server")
APPLY_SERVER_SIDE = (*APPLY, "--server-side", "--field-manager=test")


@pytest.mark.fault(56)
@pytest.mark.parametrize("command", [APPLY, APPLY_SERVER_SIDE], ids=["apply", "server-side"])
@pytest.mark.parametrize("wrong", WRONG_TIERS, ids=lambda wrong: wrong.title)
async def test_a_wrong_tier_is_refused(
    cluster: LiveCluster, command: tuple[str, ...], wrong: Wrong
) -> None:
    await refused(cluster, command, specs.tier(), wrong)


@pytest.mark.parametrize("wrong", WRONG_POOLS, ids=lambda wrong: wrong.title)
async def test_a_wrong_pool_is_refused(cluster: LiveCluster, wrong: Wrong) -> None:
    await refused(cluster, APPLY, specs.pool(), wrong)


async def refused(
    cluster: LiveCluster, command: tuple[str, ...], right: Json, wrong: Wrong
) -> None:
    """The refusal names the field, and says the remedy where the sentence is ours."""
    body = yaml.safe_dump(specs.changed(right, wrong.change))
    code, out, err = await cluster.try_kubectl(*command, stdin=body)
    assert code != 0, f"accepted: {out}"
    assert wrong.field.removesuffix("[0].name") in err, err
    assert wrong.says in err, err


@pytest.mark.parametrize(
    "right",
    [
        specs.tier(),
        specs.tier(spec__model={"source": "pvc://weights/llama-8b"}),
        specs.tier(spec__model={"source": "hf://Qwen/Qwen3-8B", "revision": "refs/pr/1"}),
        specs.tier(spec__scaling={"minReplicas": 1, "maxReplicas": 4}, spec__replicas=2),
        specs.tier(spec__wake={"budget": "20s", "cap": "1h"}, spec__interruption={"drain": "90s"}),
        specs.tier(
            spec__engine={
                "image": "registry.example.com:5000/vllm/vllm-openai@sha256:" + "0" * 64,
                "gpuMemoryUtilization": "0.92",
                "extraArgs": ["--enforce-eager", "--seed", "-1"],
                "env": [{"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"}],
            }
        ),
        specs.pool(),
        specs.pool(
            spec__nodeSelector={"cloud.google.com/gke-spot": "true"},
            spec__tolerations=[
                {"key": "nvidia.com/gpu", "operator": "Equal", "value": "present"},
                {"key": "cloud.google.com/gke-spot", "effect": "NoSchedule"},
            ],
        ),
    ],
    ids=range(8),
)
async def test_a_right_one_is_accepted(cluster: LiveCluster, right: Json) -> None:
    await cluster.kubectl(*APPLY, stdin=yaml.safe_dump(right))


async def test_the_server_and_we_refuse_the_same_arguments(cluster: LiveCluster) -> None:
    """CEL and Python, over every owned flag in every spelling and over flags that may pass."""
    owned = [flag for group in flags.OWNED for flag in group.flags]
    arguments = [
        *owned,
        *(flag.replace("-", "_").replace("_", "-", 2) + "=1" for flag in owned),
        *(flag[:-1] for flag in owned),
        *(flag + ".x=1" for flag in owned),
        *(flag + "-more" for flag in owned),
        *("--enforce-eager", "--seed 1", "--seed=a b", "-O3", "-1", "-.5", "-x", "-", "--", "-q8"),
    ]
    tiers = [
        specs.tier(f"t-{number}", spec__engine={"extraArgs": [argument]})
        for number, argument in enumerate(arguments)
    ]
    documents = "\n---\n".join(map(json.dumps, tiers))  # YAML reads the text -.5 as a number
    _, out, _ = await cluster.try_kubectl(*APPLY, "-o", "name", stdin=documents)
    accepted = {arguments[int(line.rpartition("-")[2])] for line in out.split()}
    assert accepted == {argument for argument in arguments if flags.refused(argument) is None}


async def test_the_model_of_a_tier_cannot_be_exchanged_but_its_revision_can(
    cluster: LiveCluster,
) -> None:
    namespace = await cluster.namespace("crd-immutable")
    paused = specs.tier("fixed", metadata__namespace=namespace, spec__paused=True)
    await cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(paused))
    other = specs.changed(paused, {"spec.model.source": "hf://spotinference/other"})
    code, _, err = await cluster.try_kubectl("apply", "-f", "-", stdin=yaml.safe_dump(other))
    assert code != 0
    assert "spec.model.source" in err
    assert "create another tier for another model" in err
    newer = specs.changed(paused, {"spec.model.revision": "v2"})
    await cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(newer))
    smaller = specs.changed(paused, {"spec.cache": {"size": "1Gi"}})
    code, _, err = await cluster.try_kubectl("apply", "-f", "-", stdin=yaml.safe_dump(smaller))
    assert "spec.cache.size: Invalid value" in err
    assert "can only grow a volume" in err


async def test_kubectl_scale_writes_replicas_within_the_maximum(cluster: LiveCluster) -> None:
    namespace = await cluster.namespace("crd-scale")
    body = specs.tier(
        "scaled",
        metadata__namespace=namespace,
        spec__paused=True,
        spec__scaling={"maxReplicas": 2},
    )
    await cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(body))
    await cluster.kubectl("-n", namespace, "scale", "itier/scaled", "--replicas=2")
    out = await cluster.kubectl("-n", namespace, "get", "itier", "scaled", "-o", "json")
    assert json.loads(out)["spec"]["replicas"] == 2
    code, _, err = await cluster.try_kubectl(
        "-n", namespace, "scale", "itier/scaled", "--replicas=3"
    )
    assert code != 0
    assert "raise maxReplicas first" in err


async def test_kubectl_get_shows_phase_readiness_eta_and_model(cluster: LiveCluster) -> None:
    namespace = await cluster.namespace("crd-columns")
    body = specs.tier("seen", metadata__namespace=namespace, spec__paused=True)
    await cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(body))
    out = await cluster.kubectl("-n", namespace, "get", "itier")
    assert out.split("\n")[0].split() == ["NAME", "PHASE", "READY", "WAKE-ETA", "MODEL", "AGE"]
    assert "hf://spotinference/demo" in out
    assert "seen" in await cluster.kubectl("get", "itier", "-A")
    out = await cluster.kubectl("get", "gpool")
    assert out.split("\n")[0].split() == [
        "NAME",
        "CAPACITY",
        "PROVIDER",
        "CORDONED",
        "NODES",
        "TIERS",
        "AGE",
    ]


async def test_every_field_is_explained(cluster: LiveCluster) -> None:
    out = await cluster.kubectl("explain", "itier.spec.wake.cap")
    assert "A request waits this long, then gets a 504." in out
