"""What counts as a difference, and what does not."""

from __future__ import annotations

import copy
from decimal import Decimal

import pytest

from spotinference.api.kinds import Json
from spotinference.core.diff import difference, differs, quantity, stamped


def desired() -> Json:
    return stamped(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "d", "namespace": "n", "labels": {"a": "1"}},
            "spec": {
                "replicas": 1,
                "template": {
                    "spec": {
                        "tolerations": [{"key": "k", "operator": "Exists"}],
                        "containers": [
                            {
                                "name": "engine",
                                "args": ["m", "--port", "8000"],
                                "env": [{"name": "A"}, {"name": "B", "value": "2"}],
                                "resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}},
                            }
                        ],
                        "volumes": [{"name": "tmp", "emptyDir": {}}],
                    }
                },
            },
        }
    )


def container(live: Json) -> Json:
    found: Json = live["spec"]["template"]["spec"]["containers"][0]
    return found


def test_what_the_server_adds_is_no_difference() -> None:
    live = copy.deepcopy(desired())
    live["metadata"] |= {"uid": "u", "resourceVersion": "7", "generation": 3, "managedFields": []}
    live["status"] = {"replicas": 1}
    container(live)["imagePullPolicy"] = "IfNotPresent"
    container(live)["env"][0]["value"] = ""
    assert not differs(desired(), live)


def test_quantities_are_compared_by_value() -> None:
    live = copy.deepcopy(desired())
    container(live)["resources"]["requests"] = {"cpu": "1", "memory": "1Gi"}
    assert not differs(desired(), live)
    container(live)["resources"]["requests"]["memory"] = "2Gi"
    assert differs(desired(), live)


@pytest.mark.parametrize(
    ("edit", "path"),
    [
        (lambda c: c["args"].append("--evil"), "spec.template.spec.containers[engine].args"),
        (lambda c: c["env"].pop(), "spec.template.spec.containers[engine].env[B]"),
        (
            lambda c: c["env"][1].update(value="3"),
            "spec.template.spec.containers[engine].env[B].value",
        ),
    ],
)
def test_edits_of_our_fields_are_found(edit: object, path: str) -> None:
    live = copy.deepcopy(desired())
    assert callable(edit)
    edit(container(live))
    assert difference(desired(), live) == path


def test_entries_of_others_in_keyed_lists_survive() -> None:
    live = copy.deepcopy(desired())
    container(live)["env"].append({"name": "THEIRS", "value": "1"})
    live["spec"]["template"]["spec"]["volumes"].append({"name": "theirs", "emptyDir": {}})
    assert not differs(desired(), live)


def test_a_changed_list_without_keys_is_found() -> None:
    live = copy.deepcopy(desired())
    live["spec"]["template"]["spec"]["tolerations"].append({"operator": "Exists"})
    assert differs(desired(), live)


def test_a_field_that_is_not_wanted_any_more_shows_in_the_hash() -> None:
    live = copy.deepcopy(desired())
    wanted = desired()
    del wanted["spec"]["template"]["spec"]["tolerations"]
    wanted["metadata"]["annotations"] = {}
    assert differs(stamped(wanted), live)


def test_the_hash_does_not_depend_on_the_number_of_replicas() -> None:
    more = desired()
    more["metadata"]["annotations"] = {}
    more["spec"]["replicas"] = 5
    one = desired()
    one["metadata"]["annotations"] = {}
    assert stamped(more)["metadata"]["annotations"] == stamped(one)["metadata"]["annotations"]


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", "1"), ("500m", "0.5"), ("2Gi", "2147483648"), ("1e3", "1000"), ("3k", "3000")],
)
def test_quantities_are_read_as_kubernetes_does(text: str, number: str) -> None:
    assert quantity(text) == Decimal(number)


def test_what_is_no_quantity_is_none() -> None:
    assert quantity("many") is None
    assert quantity("Gi") is None
