"""Never more than the replicas can run; what they can run is read from their own arguments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference.core.pacing import DEFAULT_SLOTS, grown, room, slots

COUNTS = st.integers(0, 300)


@given(st.lists(st.tuples(COUNTS, COUNTS), max_size=8), COUNTS)
def test_what_is_released_never_exceeds_the_free_slots(
    replicas: list[tuple[int, int]], on_the_way: int
) -> None:
    free = room(replicas, on_the_way)
    assert free >= 0
    assert free + on_the_way <= max(
        on_the_way, sum(max(0, able - running) for able, running in replicas)
    )


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 200))
def test_releasing_until_there_is_no_room_fills_every_slot_and_no_more(
    able: list[int], waiting: int
) -> None:
    """Each released one runs on some replica with a free slot."""
    running = [0] * len(able)
    while waiting and room(zip(able, running, strict=True), 0):
        for index, limit in enumerate(able):
            if running[index] < limit:
                running[index] += 1
                waiting -= 1
                break
    assert all(have <= limit for have, limit in zip(running, able, strict=True))
    assert not waiting or running == able


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), DEFAULT_SLOTS),
        (("/m", "--max-num-seqs", "8"), 8),
        (("/m", "--max-num-seqs=8", "--max-num-seqs=16"), 16),
        (("/m", "--max_num_seqs", "8"), 8),
        (("/m", "--max-num-seqs", "8", "--max-num-queued-reqs", "4"), 4),
        (("/m", "--max-num-seqs"), DEFAULT_SLOTS),
        (("/m", "--max-num-seqs", "many"), DEFAULT_SLOTS),
        (("/m", "--max-num-seqs", "0"), 1),
        (("/m", "--max-num-seqs", "9" * 5000), DEFAULT_SLOTS),
    ],
)
def test_slots_are_read_as_vllm_reads_its_arguments(argv: tuple[str, ...], expected: int) -> None:
    assert slots(argv) == expected


@given(st.integers(0, 300), st.integers(1, 300))
def test_a_limit_grows_to_the_most_and_never_stays(limit: int, most: int) -> None:
    steps = 0
    while limit < most:
        more = grown(limit, most)
        assert limit < more <= most
        limit, steps = more, steps + 1
    assert steps < 30
