"""`parse` refuses what the API server refuses, naming field and remedy."""

from __future__ import annotations

import pytest

from spotinference import errors
from spotinference.api import parse
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


def test_a_minimal_tier_gets_every_default() -> None:
    spec = parse.parse_tier(specs.tier())
    assert spec.scaling.min_replicas == 0
    assert spec.wake.cap == "10m"
    assert spec.cache.retain


def test_a_damaged_status_counts_as_none_at_all() -> None:
    body = specs.tier(status={"phase": "Confused"})
    assert parse.parse_status(body).phase is None
