"""Renders the CustomResourceDefinitions from the models in `tier.py` and `pool.py`.

`spotinference crds write` calls it; nothing in `crds/` is edited by hand. pydantic's JSON schema is
almost, but not quite, what the API server calls structural: references are inlined, null branches,
titles and number-valued `exclusiveMinimum` go, a nested object's default is spelled out (the server
checks CEL rules on it before it would fill in `{}`), and the status carries no defaults (the
operator writes it whole).
"""

from __future__ import annotations

from collections.abc import Mapping

from spotinference.api import rules
from spotinference.api.kinds import CRD, POOL, TIER, Json, Kind
from spotinference.api.model import ApiModel
from spotinference.api.pool import PoolSpec, PoolStatus
from spotinference.api.tier import TierSpec
from spotinference.api.tier_status import TierStatus

CATEGORY = "inference"

_KEPT = (
    "type",
    "description",
    "enum",
    "format",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minProperties",
    "maxProperties",
    "x-kubernetes-validations",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
)
"""Schema keywords copied as they are; everything else is translated or dropped."""


def definitions() -> dict[str, Json]:
    """File name -> CustomResourceDefinition, in the order to apply them."""
    return {"gpupool.yaml": gpu_pool(), "inferencetier.yaml": inference_tier()}


def inference_tier() -> Json:
    return _definition(
        TIER,
        short_name="itier",
        description="One served model on spot GPUs: sleeps at zero, wakes on a request.",
        spec=TierSpec,
        name_rules=rules.TIER_NAME,
        status=TierStatus,
        columns=(
            _column("Phase", ".status.phase"),
            _column("Ready", ".status.readySummary"),
            _column("Wake-ETA", ".status.wake.eta"),
            _column("Model", ".spec.model.source"),
            _column("Age", ".metadata.creationTimestamp", "date"),
        ),
        scale={
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    )


def gpu_pool() -> Json:
    return _definition(
        POOL,
        short_name="gpool",
        description="A kind of GPU node that an administrator offers to tiers.",
        spec=PoolSpec,
        name_rules=rules.POOL_NAME,
        status=PoolStatus,
        columns=(
            _column("Capacity", ".spec.capacityType"),
            _column("Provider", ".spec.provider"),
            _column("Cordoned", ".spec.cordoned", "boolean"),
            _column("Nodes", ".status.nodes", "integer"),
            _column("Tiers", ".status.tiers", "integer"),
            _column("Age", ".metadata.creationTimestamp", "date"),
        ),
    )


def _column(name: str, path: str, kind: str = "string") -> Json:
    return {"name": name, "jsonPath": path, "type": kind}


def _definition(
    kind: Kind,
    *,
    short_name: str,
    description: str,
    spec: type[ApiModel],
    name_rules: tuple[rules.Rule, ...],
    status: type[ApiModel],
    columns: tuple[Json, ...],
    scale: Json | None = None,
) -> Json:
    subresources: Json = {"status": {}}
    if scale is not None:
        subresources["scale"] = scale
    return {
        "apiVersion": CRD.api_version,
        "kind": CRD.kind,
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {
            "group": kind.group,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": [short_name],
                "categories": [CATEGORY],
            },
            "versions": [
                {
                    "name": kind.version,
                    "served": True,
                    "storage": True,
                    "subresources": subresources,
                    "additionalPrinterColumns": list(columns),
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": description,
                            "required": ["spec"],
                            rules.VALIDATIONS: [rule.validation() for rule in name_rules],
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object"},
                                "spec": schema(spec, defaults=True),
                                "status": schema(status, defaults=False),
                            },
                        }
                    },
                }
            ],
        },
    }


def schema(model: type[ApiModel], *, defaults: bool) -> Json:
    """The structural schema of one model."""
    raw = model.model_json_schema(by_alias=True)
    return _Translation(raw.get("$defs", {}), defaults=defaults).of(raw)


class _Translation:
    """From pydantic's JSON schema to a structural one."""

    def __init__(self, references: Mapping[str, Json], *, defaults: bool) -> None:
        self._references = references
        self._defaults = defaults

    def of(self, raw: Json) -> Json:
        raw = self._resolved(raw)
        out: Json = {key: raw[key] for key in _KEPT if key in raw}
        if "const" in raw:
            out["enum"] = [raw["const"]]
        if self._defaults and raw.get("default") is not None:
            out["default"] = raw["default"]
        if raw.get("type") == "array":
            out["items"] = self.of(raw["items"])
        if raw.get("type") == "object":
            self._object(raw, out)
        return out

    def _object(self, raw: Json, out: Json) -> None:
        if "properties" not in raw:
            out["additionalProperties"] = self.of(raw["additionalProperties"])
            return
        required = raw.get("required", [])
        out["properties"] = {name: self.of(value) for name, value in raw["properties"].items()}
        if required:
            out["required"] = list(required)
        if not self._defaults:
            return
        for name, value in raw["properties"].items():
            child = out["properties"][name]
            if child.get("type") != "object" or "properties" not in child:
                continue
            if name not in required and not _nullable(value) and not child.get("required"):
                child["default"] = _defaults(child)

    def _resolved(self, raw: Json) -> Json:
        """`raw` without `$ref` and without the null branch of an optional field."""
        rest = {key: value for key, value in raw.items() if key not in {"$ref", "anyOf", "allOf"}}
        if "$ref" in raw:
            target = self._references[raw["$ref"].removeprefix("#/$defs/")]
            return {**self._resolved(target), **rest}
        if "anyOf" in raw:
            branches = [branch for branch in raw["anyOf"] if branch.get("type") != "null"]
            if len(branches) != 1:
                raise ValueError(
                    f"a union of {len(branches)} types has no structural schema: {raw}"
                )
            return {**self._resolved(branches[0]), **rest}
        return raw


def _nullable(raw: Json) -> bool:
    return any(branch.get("type") == "null" for branch in raw.get("anyOf", []))


def _defaults(child: Json) -> Json:
    return {
        name: value["default"] for name, value in child["properties"].items() if "default" in value
    }
