"""Comparisons that found nothing are remembered by version: quicker, and never stale."""

from __future__ import annotations

import copy
import itertools

from spotinference.api.kinds import Json
from spotinference.core import diff
from spotinference.core.diff import difference, stamped

NUMBERS = itertools.count()


def pair() -> tuple[Json, Json]:
    ours = stamped({"metadata": {"name": "a"}, "spec": {"replicas": 1, "image": "x"}})
    live = copy.deepcopy(ours)
    live["metadata"] |= {"uid": f"uid-{next(NUMBERS)}", "resourceVersion": "1"}
    return ours, live


def test_a_new_version_is_compared_anew() -> None:
    ours, live = pair()
    assert difference(ours, live) == ""
    live["metadata"]["resourceVersion"] = "2"
    live["spec"]["image"] = "evil"
    assert difference(ours, live) == "spec.image"


def test_other_replicas_or_another_template_are_compared_anew() -> None:
    ours, live = pair()
    assert difference(ours, live) == ""
    assert difference({**ours, "spec": {**ours["spec"], "replicas": 2}}, live) == "spec.replicas"
    other = stamped({"metadata": {"name": "a"}, "spec": {"replicas": 1, "image": "y"}})
    assert difference(other, live) != ""


def test_a_difference_is_found_each_time() -> None:
    ours, live = pair()
    live["spec"]["image"] = "evil"
    assert difference(ours, live) == difference(ours, live) == "spec.image"


def test_what_is_remembered_is_bounded() -> None:
    ours, live = pair()
    for number in range(diff.MAX_REMEMBERED + 10):
        live["metadata"]["uid"] = f"u{number}"
        assert difference(ours, live) == ""
    assert len(diff._SAME) <= diff.MAX_REMEMBERED
