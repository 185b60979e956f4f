"""Ids of requests are drawn in bulk and never given twice."""

from __future__ import annotations

from spotinference.gateway.ids import DRAWN, Ids


def test_no_id_is_given_twice_across_several_draws() -> None:
    ids = Ids()
    given = [ids() for _ in range(3 * DRAWN + 1)]
    assert len(set(given)) == len(given)
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in given)
