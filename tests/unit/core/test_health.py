"""The health of nodes: two witnesses, degrees, and the hold when many are silent at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference.api.kinds import Json
from spotinference.core.health import (
    HOLD_S,
    LEASE_STALE_S,
    MANY,
    SUSPECT_S,
    Contact,
    Witness,
    health_of,
    held,
    silent,
)
from spotinference.core.observed import NodeHealth

ANSWERS = Contact(answered_ago_s=2)
REFUSES = Contact(answered_ago_s=30, failing_s=9)
SILENT = Witness(LEASE_STALE_S + 1, ANSWERS)
DEAD = Witness(LEASE_STALE_S + 1, REFUSES)
FINE = Witness(4, ANSWERS)


def node(ready: str = "True") -> Json:
    return {"status": {"conditions": [{"type": "Ready", "status": ready}]}}


@pytest.mark.parametrize(
    ("body", "witness", "hold", "verdict"),
    [
        (None, None, False, NodeHealth.GONE),
        (None, SILENT, True, NodeHealth.GONE),
        (node(), FINE, False, NodeHealth.HEALTHY),
        (node(), None, False, NodeHealth.HEALTHY),
        (node(), SILENT, False, NodeHealth.STALE),
        (node(), SILENT, True, NodeHealth.HEALTHY),
        (node("Unknown"), FINE, False, NodeHealth.STALE),
        (node("Unknown"), SILENT, True, NodeHealth.HEALTHY),
        (node("False"), FINE, False, NodeHealth.STALE),
        (node("False"), SILENT, True, NodeHealth.STALE),
    ],
)
def test_the_verdict(
    body: Json | None, witness: Witness | None, hold: bool, verdict: NodeHealth
) -> None:
    assert health_of(body, witness, hold=hold) is verdict


@pytest.mark.parametrize(
    ("age_s", "contact", "verdict"),
    [
        (SUSPECT_S - 1, REFUSES, False),  # an engine's trouble is not its node's
        (SUSPECT_S + 1, REFUSES, True),
        (SUSPECT_S + 1, ANSWERS, False),
        (SUSPECT_S + 1, Contact(), False),
        (SUSPECT_S + 1, Contact(3, failing_s=1), False),
        (LEASE_STALE_S + 1, ANSWERS, True),
    ],
)
def test_an_engine_that_does_not_answer_shortens_the_wait_for_the_lease(
    age_s: float, contact: Contact, verdict: bool
) -> None:
    assert silent(Witness(age_s, contact)) is verdict


def test_one_silent_node_is_never_held() -> None:
    assert held({"a": SILENT}, 0) == frozenset()
    assert held({"a": SILENT, "b": FINE}, 0) == frozenset()


def test_many_silent_nodes_whose_engines_answer_are_held_for_a_while() -> None:
    nodes = {"a": SILENT, "b": SILENT, "c": FINE}
    assert held(nodes, 0) == {"a", "b"}
    assert held(nodes, HOLD_S - 1) == {"a", "b"}
    assert held(nodes, HOLD_S) == frozenset()


def test_a_zone_that_is_reclaimed_at_once_is_not_held() -> None:
    assert held(dict.fromkeys("abcdef", DEAD), 0) == frozenset()
    assert held({"a": DEAD, "b": DEAD, "c": SILENT}, 0) == {"c"}


def test_a_minority_is_not_held() -> None:
    nodes = {"a": SILENT, "b": SILENT, **dict.fromkeys("cdefg", FINE)}
    assert held(nodes, 0) == frozenset()


def test_what_was_held_is_until_it_is_back_altogether() -> None:
    """A hiccup ends node by node: the last one to come back is no more lost than the first."""
    before = frozenset("ab")
    assert held({"a": FINE, "b": SILENT}, 9, before) == {"b"}
    assert held({"a": replace(FINE, ready=False), "b": FINE}, 9, before) == {"a"}
    assert held({"a": FINE, "b": FINE}, 9, before) == frozenset()
    assert held({"a": FINE, "b": DEAD}, 9, before) == frozenset()
    assert held({"a": FINE, "b": SILENT}, HOLD_S, before) == frozenset()
    assert held({"a": FINE}, 9, before) == frozenset()


witnesses = st.builds(
    Witness, st.floats(0, 400), st.builds(Contact, st.none() | st.floats(0, 100), st.floats(0, 100))
)


@given(nodes=st.dictionaries(st.text(max_size=3), witnesses, max_size=12), for_s=st.floats(0, 1000))
def test_only_many_silent_nodes_that_answer_are_ever_held(
    nodes: dict[str, Witness], for_s: float
) -> None:
    found = held(nodes, for_s)
    quiet = [name for name, witness in nodes.items() if silent(witness)]
    assert found <= set(quiet)
    if found:
        assert len(quiet) >= MANY
        assert 2 * len(quiet) >= len(nodes)
        assert for_s < HOLD_S
