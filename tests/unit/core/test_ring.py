"""Rendezvous hashing: everybody agrees, and few ids move."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from spotinference.core import ring

peers = st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=8)


@given(name=st.text(max_size=20), all_peers=peers, data=st.data())
def test_only_what_a_peer_had_moves_when_it_goes(
    name: str, all_peers: set[str], data: st.DataObject
) -> None:
    before = ring.owner(name, all_peers)
    assert before in all_peers
    assert ring.owner(name, sorted(all_peers, reverse=True)) == before
    gone = data.draw(st.sampled_from(sorted(all_peers)))
    after = ring.owner(name, all_peers - {gone})
    assert before in {after, gone}


def test_peers_have_about_the_same() -> None:
    counts = Counter(ring.owner(str(n), ["a", "b", "c"]) for n in range(3000))
    assert min(counts.values()) > 800
    assert ring.owner("x", []) is None
