"""JSON schemas for kubeconform, made from what our own API server publishes (OpenAPI v3)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.cluster import LiveCluster

LOCATION = "{{ .ResourceKind }}-{{ .Group }}-{{ .ResourceAPIVersion }}.json"
"""kubeconform's template for a file name; the kind arrives in lower case."""
GVK = "x-kubernetes-group-version-kind"


async def dump(cluster: LiveCluster, folder: Path) -> None:
    """One file per kind that the server knows, strict: an unknown field is an error."""
    index = json.loads(await cluster.kubectl("get", "--raw", "/openapi/v3"))
    for path in index["paths"]:
        if not path.startswith(("api/", "apis/")) or path.count("/") < 1:
            continue
        document = json.loads(await cluster.kubectl("get", "--raw", f"/openapi/v3/{path}"))
        schemas = document.get("components", {}).get("schemas", {})
        for schema in schemas.values():
            _forbid_unknown_fields(schema)
        for schema in schemas.values():
            for gvk in schema.get(GVK, []):
                whole = {**schema, "components": {"schemas": schemas}}
                group = gvk["group"] or gvk["version"]  # so kubeconform reads `apiVersion: v1`
                name = f"{gvk['kind'].lower()}-{group}-{gvk['version']}.json"
                (folder / name).write_text(json.dumps(whole))


def _forbid_unknown_fields(schema: Any) -> None:
    if isinstance(schema, list):
        for item in schema:
            _forbid_unknown_fields(item)
    if not isinstance(schema, dict):
        return
    for value in schema.values():
        _forbid_unknown_fields(value)
    open_ended = (
        "additionalProperties" in schema or "x-kubernetes-preserve-unknown-fields" in schema
    )
    if isinstance(schema.get("properties"), dict) and not open_ended:
        schema["additionalProperties"] = False
