"""The generated CRDs: no drift, and what every schema of ours must have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spotinference import assets
from spotinference.api import crd, reference
from spotinference.api.kinds import Json
from spotinference.cli import crds

ROOT = assets.find("crds").parent
SCHEMAS = {
    (kind, part): body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][part]
    for kind, body in crd.definitions().items()
    for part in ("spec", "status")
}


def nodes(schema: Json, path: str) -> Iterator[tuple[str, Json]]:
    """Every schema below this one, with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


ALL = [
    (f"{kind}:{path}", schema)
    for (kind, part), root in SCHEMAS.items()
    for path, schema in nodes(root, part)
]


@pytest.mark.parametrize("path", sorted(crds.generated(ROOT)))
def test_generated_files_are_what_the_models_say(path: str) -> None:
    assert (ROOT / path).read_text() == crds.generated(ROOT)[path], "remedy: make crds"


def test_every_condition_reason_phase_and_stage_is_explained() -> None:
    assert "|  |" not in reference.pages()["conditions.md"]


def test_every_field_is_described() -> None:
    undescribed = [
        path for path, schema in ALL if not path.endswith("[]") and not described(schema)
    ]
    assert undescribed == []


def described(schema: Json) -> bool:
    return len(schema.get("description", "")) > 4


def test_every_text_and_list_has_a_bound() -> None:
    unbounded = [
        path
        for path, schema in ALL
        if (schema["type"] == "string" and not {"maxLength", "enum"} & schema.keys())
        or (schema["type"] == "array" and "maxItems" not in schema)
        or ("additionalProperties" in schema and "maxProperties" not in schema)
    ]
    assert unbounded == []


def test_every_number_of_a_spec_has_both_bounds() -> None:
    unbounded = [
        path
        for path, schema in ALL
        if ":spec" in path
        and schema["type"] in {"integer", "number"}
        and not {"minimum", "maximum"} <= schema.keys()
    ]
    assert unbounded == []


def test_formats_are_rules_with_a_sentence_and_never_patterns() -> None:
    assert [path for path, schema in ALL if "pattern" in schema] == []


def test_the_status_has_no_defaults_because_the_operator_writes_it_whole() -> None:
    assert [path for path, schema in ALL if ":status" in path and "default" in schema] == []


def test_every_message_of_a_rule_ends_without_a_full_stop_and_fits_one_line() -> None:
    rules = [rule for _, schema in ALL for rule in schema.get("x-kubernetes-validations", [])]
    assert len(rules) > 40
    assert [rule["message"] for rule in rules if rule["message"].endswith(".")] == []
    assert [rule["message"] for rule in rules if "\n" in rule["message"]] == []


def test_the_tier_has_the_scale_and_status_subresources() -> None:
    version = crd.inference_tier()["spec"]["versions"][0]
    assert version["subresources"]["status"] == {}
    assert version["subresources"]["scale"]["labelSelectorPath"] == ".status.selector"
