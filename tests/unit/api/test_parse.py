"""`parse` refuses what the API server refuses, naming field and remedy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference import errors
from spotinference.api import parse
from spotinference.api.kinds import Json
from spotinference.api.pool import PriceSpec
from spotinference.api.tier_status import TierStatus
from tests.support import specs
from tests.support.specs import WRONG_POOLS, WRONG_TIERS, Wrong


@pytest.mark.fault(56)
@pytest.mark.parametrize("wrong", WRONG_TIERS, ids=lambda wrong: wrong.title)
def test_a_wrong_tier_is_refused_with_its_field_and_the_remedy(wrong: Wrong) -> None:
    with pytest.raises(errors.SpecInvalid) as caught:
        parse.parse_tier(specs.changed(specs.tier(), wrong.change))
    assert same_field(wrong.field, str(caught.value)), str(caught.value)
    assert wrong.says in str(caught.value)


@pytest.mark.parametrize("wrong", WRONG_POOLS, ids=lambda wrong: wrong.title)
def test_a_wrong_pool_is_refused_with_its_field_and_the_remedy(wrong: Wrong) -> None:
    with pytest.raises(errors.SpecInvalid) as caught:
        parse.parse_pool(specs.changed(specs.pool(), wrong.change))
    assert same_field(wrong.field, str(caught.value)), str(caught.value)
    assert wrong.says in str(caught.value)


def same_field(expected: str, message: str) -> bool:
    return expected.replace("[", ".").replace("]", "") in message


NEWER_TIER: Json = {
    "spec.reserve": {"share": 1},
    "spec.scaling.surge": 2,
    "spec.engine.env": [{"name": "A", "value": "1", "secret": False}],
}


def test_fields_of_a_newer_crd_are_left_out_of_stored_objects() -> None:
    known = specs.changed(specs.tier(), {"spec.engine.env": [{"name": "A", "value": "1"}]})
    newer = specs.changed(specs.tier(), NEWER_TIER)
    assert parse.stored_tier(newer) == parse.parse_tier(known)
    pool = specs.changed(specs.pool(), {"spec.weight": 1, "spec.price": {"microUSDPerHour": 1}})
    pool["spec"]["price"]["currency"] = "USD"
    assert parse.stored_pool(pool).price == PriceSpec(micro_usd_per_hour=1)


def test_what_is_wrong_in_a_stored_object_is_named_beside_what_is_newer() -> None:
    wrong = specs.changed(specs.tier(), {**NEWER_TIER, "spec.wake.cap": "soon"})
    with pytest.raises(errors.SpecInvalid, match=r"spec\.wake\.cap"):
        parse.stored_tier(wrong)


def test_a_minimal_tier_gets_every_default() -> None:
    spec = parse.parse_tier(specs.tier())
    assert spec.scaling.min_replicas == 0
    assert spec.wake.cap == "10m"
    assert spec.cache.retain


GOOD = {
    "lastWakeSeconds": 50,
    "lastDecision": {"at": "2026-11-01T12:00:00Z", "desired": 2, "reason": "because"},
    "scaling": {"idleSince": "2026-11-01T12:00:00Z"},
    "markets": [{"pool": "a", "zone": "z"}, {"pool": "b", "zone": "z"}],
    "learned": {"at": "2026-11-01T12:00:00Z", "requestsPerReplicaMilli": 700},
}


@pytest.mark.fault(24)
@pytest.mark.parametrize(
    ("changed", "lost"),
    [
        ({"phase": "Confused"}, set()),
        ({"addedByANewerVersion": {"a": [1]}}, set()),
        ({"scaling": {"idleSince": "soon", "addedLater": 1}}, {"scaling"}),
        ({"scaling": {"idleSince": "9999-12-31T23:59:59-14:00"}}, {"scaling"}),
        ({"scaling": {"idleSince": "0001-01-01T00:00:00Z"}}, {"scaling"}),
        ({"scaling": []}, {"scaling"}),
        ({"learned": {"at": "yesterday", "dayMilli": [1, "x"]}}, {"learned"}),
        ({"lastDecision": {"at": "2026-11-01T12:00:00Z"}}, {"last_decision"}),
        ({"markets": [{"pool": "b", "zone": "z"}, {"pool": "c"}, 7]}, {"markets"}),
        ({"lastWakeSeconds": "long"}, {"last_wake_seconds"}),
        ({"wake": {"startedAt": "", "deadline": "x", "stage": "s"}}, set()),
    ],
)
def test_of_a_damaged_status_only_what_is_damaged_is_lost(changed: Json, lost: set[str]) -> None:
    good = parse.parse_status({"status": GOOD})
    found = parse.parse_status({"status": {**GOOD, **changed}})
    assert {name for name in dict(good) if dict(found)[name] != dict(good)[name]} == lost
    assert found == parse.parse_status({"status": found.model_dump(by_alias=True)})


@pytest.mark.fault(24)
@pytest.mark.parametrize("status", [[], "none", 3, [[]], {"markets": {"0": 1}}])
def test_a_status_that_is_something_else_counts_as_none_at_all(status: object) -> None:
    assert parse.parse_status({"status": status}) == TierStatus()


nonsense = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from(sorted(GOOD)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*GOOD, "at", "pool", "zone", "idleSince", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@pytest.mark.fault(24)
@given(nonsense)
def test_no_status_is_too_damaged_to_be_read(status: object) -> None:
    parse.parse_status({"status": status})
    parse.parse_wake({"status": status} if isinstance(status, dict) else {})
