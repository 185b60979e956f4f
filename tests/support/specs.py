"""Tiers and pools as users write them: a valid one of each, and a table of wrong ones.

The same table is put before the API server (`tests/cluster`) and before `parse` (`tests/unit`), so
that both refuse the same things for the same reasons.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from spotinference.api.kinds import POOL, TIER, Json

LONG_NAME = "a-name-that-is-just-one-letter-over-forty"


@dataclass(frozen=True, slots=True)
class Wrong:
    """A change that makes a valid object wrong, and what the refusal must say."""

    title: str
    change: Json
    """Dotted path -> value; `None` removes the field."""
    field: str
    says: str
    """Words of the sentence; empty for type errors, whose wording is the server's."""


def tier(name: str = "chat", **change: object) -> Json:
    """A valid tier, changed at these paths (dots written as `__`)."""
    body: Json = {
        "apiVersion": TIER.api_version,
        "kind": TIER.kind,
        "metadata": {"name": name},
        "spec": {
            "model": {"source": "hf://spotinference/demo"},
            "placement": {"pools": ["l4-spot"]},
        },
    }
    return changed(body, {path.replace("__", "."): value for path, value in change.items()})


def pool(name: str = "l4-spot", **change: object) -> Json:
    """A valid pool, changed at these paths (dots written as `__`)."""
    body: Json = {
        "apiVersion": POOL.api_version,
        "kind": POOL.kind,
        "metadata": {"name": name},
        "spec": {"capacityType": "spot", "zones": ["zone-a", "zone-b"]},
    }
    return changed(body, {path.replace("__", "."): value for path, value in change.items()})


def changed(body: Json, change: Json) -> Json:
    """A copy of the object with these paths set, or removed where the value is None."""
    out = copy.deepcopy(body)
    for path, value in change.items():
        *parents, last = path.split(".")
        target = out
        for parent in parents:
            target = target.setdefault(parent, {})
        if value is None:
            target.pop(last, None)
        else:
            target[last] = value
    return out


WRONG_TIERS: tuple[Wrong, ...] = (
    Wrong("name too long", {"metadata.name": LONG_NAME}, "metadata.name", "at most 40 characters"),
    Wrong("name begins with a digit", {"metadata.name": "7b"}, "metadata.name", "with a letter"),
    Wrong("name with a dot", {"metadata.name": "llama.3"}, "metadata.name", "lower-case letters"),
    Wrong("no model", {"spec.model": None}, "spec.model", ""),
    Wrong("no pools", {"spec.placement": None}, "spec.placement", ""),
    Wrong("empty pools", {"spec.placement.pools": []}, "spec.placement.pools", ""),
    Wrong("unknown field", {"spec.modle": {"source": "hf://a/b"}}, "modle", ""),
    Wrong("unknown nested field", {"spec.scaling.maxReplica": 3}, "maxReplica", ""),
    Wrong("text for a number", {"spec.scaling.maxReplicas": "3"}, "spec.scaling.maxReplicas", ""),
    Wrong("negative minimum", {"spec.scaling.minReplicas": -1}, "spec.scaling.minReplicas", ""),
    Wrong("zero target", {"spec.scaling.targetWaiting": 0}, "spec.scaling.targetWaiting", ""),
    Wrong("huge maximum", {"spec.scaling.maxReplicas": 10**18}, "spec.scaling.maxReplicas", ""),
    Wrong("percentile of all", {"spec.scaling.slo": {"percentile": 100}}, "spec.scaling.slo", ""),
    Wrong(
        "objective of no time",
        {"spec.scaling.slo": {"itl": "0ms"}},
        "spec.scaling.slo",
        "must be between 1ms and 1m",
    ),
    Wrong(
        "objective without a unit",
        {"spec.scaling.slo": {"ttft": "0.5"}},
        "spec.scaling.slo",
        "must be a duration",
    ),
    Wrong("zero maximum", {"spec.scaling.maxReplicas": 0}, "spec.scaling.maxReplicas", ""),
    Wrong("unknown access mode", {"spec.cache.accessMode": "RWX"}, "spec.cache.accessMode", ""),
    Wrong(
        "minimum over maximum",
        {"spec.scaling": {"minReplicas": 3, "maxReplicas": 2}},
        "spec.scaling.minReplicas",
        "raise maxReplicas or lower minReplicas",
    ),
    Wrong("replicas over maximum", {"spec.replicas": 5}, "spec.replicas", "raise maxReplicas"),
    Wrong(
        "budget over cap",
        {"spec.wake": {"budget": "9m", "cap": "5m"}},
        "spec.wake.budget",
        "raise cap or lower budget",
    ),
    Wrong("cap over an hour", {"spec.wake.cap": "61m"}, "spec.wake.cap", "between 1s and 1h"),
    Wrong("cap in words", {"spec.wake.cap": "10 minutes"}, "spec.wake.cap", "such as 90s, 8m"),
    Wrong("no unit", {"spec.scaling.idleTimeout": "600"}, "spec.scaling.idleTimeout", "such as"),
    Wrong(
        "idle timeout of zero",
        {"spec.scaling.idleTimeout": "0s"},
        "spec.scaling.idleTimeout",
        "between 1s and 24h",
    ),
    Wrong("drain never ends", {"spec.interruption.drain": "2h"}, "spec.interruption.drain", "1h"),
    Wrong(
        "drain in words",
        {"spec.interruption.drain": "soon"},
        "spec.interruption.drain",
        "auto, or a duration",
    ),
    Wrong("source of S3", {"spec.model.source": "s3://a/b"}, "spec.model.source", "hf://ORG/NAME"),
    Wrong("source, no org", {"spec.model.source": "hf://llama"}, "spec.model.source", "hf://ORG"),
    Wrong(
        "source leaves the claim",
        {"spec.model.source": "pvc://weights/a/../../b"},
        "spec.model.source",
        "must not contain '..'",
    ),
    Wrong("revision", {"spec.model.revision": "a b"}, "spec.model.revision", "tag or commit"),
    Wrong(
        "revision of a claim",
        {"spec.model": {"source": "pvc://weights/llama", "revision": "v2"}},
        "spec.model.revision",
        "has no meaning for a pvc://",
    ),
    Wrong(
        "token for a claim",
        {"spec.model": {"source": "pvc://weights/llama", "tokenSecretRef": {"name": "hub"}}},
        "spec.model.tokenSecretRef",
        "has no meaning for a pvc://",
    ),
    Wrong(
        "alias twice",
        {"spec.model.aliases": ["chat-large", "chat-large"]},
        "spec.model.aliases",
        "the same alias twice",
    ),
    Wrong(
        "alias is the served name",
        {"spec.model.servedName": "a", "spec.model.aliases": ["a"]},
        "spec.model.aliases",
        "repeats servedName",
    ),
    Wrong("served name", {"spec.model.servedName": "my model"}, "spec.model.servedName", "clients"),
    Wrong("image, no tag", {"spec.engine.image": "vllm/vllm-openai"}, "spec.engine.image", "a tag"),
    Wrong(
        "image latest",
        {"spec.engine.image": "vllm/vllm-openai:latest"},
        "spec.engine.image",
        "other than latest",
    ),
    Wrong(
        "utilisation over one",
        {"spec.engine.gpuMemoryUtilization": "1.2"},
        "spec.engine.gpuMemoryUtilization",
        '"0.92"',
    ),
    Wrong(
        "parser that is a flag",
        {"spec.engine.toolCallParser": "--host"},
        "spec.engine.toolCallParser",
        "must be a plain name",
    ),
    Wrong("owned: host", {"spec.engine.extraArgs": ["--host=::"]}, "extraArgs[0]", "refused"),
    Wrong(
        "owned: field",
        {"spec.engine.extraArgs": ["--max-model-len", "8192"]},
        "extraArgs[0]",
        "a field of the tier sets it",
    ),
    Wrong(
        "owned: underscores",
        {"spec.engine.extraArgs": ["--seed=1", "--trust_remote_code"]},
        "extraArgs[1]",
        "build an image instead",
    ),
    Wrong(
        "owned: a prefix",
        {"spec.engine.extraArgs": ["--served-mod", "x"]},
        "extraArgs[0]",
        "refused",
    ),
    Wrong("owned: dotted", {"spec.engine.extraArgs": ["--config.a=b"]}, "extraArgs[0]", "refused"),
    Wrong("owned: one letter", {"spec.engine.extraArgs": ["-qawq"]}, "extraArgs[0]", "refused"),
    Wrong("owned: the end", {"spec.engine.extraArgs": ["--", "x"]}, "extraArgs[0]", "refused"),
    Wrong(
        "flag and value in one word",
        {"spec.engine.extraArgs": ["--seed 1"]},
        "extraArgs[0]",
        "two items",
    ),
    Wrong(
        "value without a flag",
        {"spec.engine.extraArgs": ["8192"]},
        "spec.engine.extraArgs",
        "must begin with a flag",
    ),
    Wrong(
        "env: loader",
        {"spec.engine.env": [{"name": "LD_PRELOAD", "value": "/x.so"}]},
        "spec.engine.env[0].name",
        "belongs to the operator",
    ),
    Wrong(
        "env: cache",
        {"spec.engine.env": [{"name": "VLLM_CACHE_ROOT", "value": "/tmp"}]},
        "spec.engine.env[0].name",
        "belongs to the operator",
    ),
    Wrong(
        "env: GPUs",
        {"spec.engine.env": [{"name": "CUDA_VISIBLE_DEVICES", "value": "0"}]},
        "spec.engine.env[0].name",
        "belongs to the operator",
    ),
    Wrong(
        "env: not a name",
        {"spec.engine.env": [{"name": "2ND", "value": "1"}]},
        "spec.engine.env[0].name",
        "must be a variable name",
    ),
    Wrong(
        "env: twice",
        {"spec.engine.env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
        "spec.engine.env",
        "",
    ),
    Wrong(
        "shards without GPUs",
        {"spec.engine.tensorParallelSize": 2},
        "spec.resources.gpu.count",
        "at least spec.engine.tensorParallelSize",
    ),
    Wrong(
        "GPU of no vendor",
        {"spec.resources.gpu.resourceName": "gpu"},
        "spec.resources.gpu.resourceName",
        "such as nvidia.com/gpu",
    ),
    Wrong("memory in words", {"spec.resources.memory": "16 GB"}, "spec.resources.memory", "16Gi"),
    Wrong("no memory", {"spec.resources.memory": "0"}, "spec.resources.memory", "more than zero"),
    Wrong(
        "shared memory over memory",
        {"spec.resources": {"memory": "8Gi", "sharedMemory": "9Gi"}},
        "spec.resources.sharedMemory",
        "raise memory",
    ),
    Wrong(
        "pool twice",
        {"spec.placement.pools": ["a", "b", "a"]},
        "spec.placement.pools",
        "remove one",
    ),
    Wrong("dots", {"spec.placement.pools": ["l4..spot"]}, "spec.placement.pools[0]", "lower"),
    Wrong("pool name", {"spec.placement.pools": ["L4 spot"]}, "spec.placement.pools[0]", "lower"),
)

WRONG_POOLS: tuple[Wrong, ...] = (
    Wrong("no capacity type", {"spec.capacityType": None}, "spec.capacityType", ""),
    Wrong("unknown capacity type", {"spec.capacityType": "cheap"}, "spec.capacityType", ""),
    Wrong("no zones", {"spec.zones": []}, "spec.zones", ""),
    Wrong("zone twice", {"spec.zones": ["a", "b", "a"]}, "spec.zones", "the same zone twice"),
    Wrong("zone is no label", {"spec.zones": ["zone a"]}, "spec.zones[0]", "label value"),
    Wrong(
        "selects a zone",
        {"spec.nodeSelector": {"topology.kubernetes.io/zone": "a"}},
        "spec.nodeSelector",
        "list the zones in spec.zones",
    ),
    Wrong(
        "selects by our label",
        {"spec.nodeSelector": {"spotinference.dev/pool": "a"}},
        "spec.nodeSelector",
        "list the zones in spec.zones",
    ),
    Wrong("label key", {"spec.nodeSelector": {"a b": "c"}}, "spec.nodeSelector", "no label key"),
    Wrong(
        "value with Exists",
        {"spec.tolerations": [{"key": "nvidia.com/gpu", "value": "present"}]},
        "spec.tolerations[0].value",
        "set operator: Equal",
    ),
    Wrong(
        "Equal without value",
        {"spec.tolerations": [{"key": "nvidia.com/gpu", "operator": "Equal"}]},
        "spec.tolerations[0].value",
        "set operator: Exists",
    ),
    Wrong("notice", {"spec.noticeSeconds": -1}, "spec.noticeSeconds", ""),
    Wrong("refusal", {"spec.refusalAfter": "1 minute"}, "spec.refusalAfter", "such as 90s"),
    Wrong("unknown field", {"spec.price": 1}, "price", ""),
)
