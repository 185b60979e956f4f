"""Deadlines: never below the floor, above the ceiling, or shorter for more work."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spotinference.core import deadlines as d
from spotinference.core.deadlines import Bounds, Speed, after_answer, after_first, deadlines

BOUNDS = Bounds(120, 600, 20, 60, 600, 3600)
TOKENS = st.integers(min_value=1, max_value=200_000)
SECONDS = st.floats(min_value=0, max_value=700, allow_nan=False)


@st.composite
def speeds(draw: st.DrawFn) -> Speed:
    speed = Speed()
    for tokens, took_s in draw(st.lists(st.tuples(TOKENS, SECONDS), max_size=20)):
        speed = after_first(speed, tokens, took_s)
    for reads, took_s in draw(st.lists(st.tuples(st.integers(1, 5000), SECONDS), max_size=20)):
        speed = after_answer(speed, reads, took_s)
    return speed


@given(speeds(), TOKENS, TOKENS | st.none())
def test_every_deadline_lies_between_its_floor_and_its_ceiling(
    speed: Speed, prompt: int, limit: int | None
) -> None:
    found = deadlines(prompt, limit, speed, BOUNDS)
    assert 120 <= found.first_s <= 600
    assert 20 <= found.next_s <= 60
    assert 600 <= found.total_s <= 3600


@given(speeds(), TOKENS, TOKENS, TOKENS)
def test_more_work_never_gets_less_time(speed: Speed, prompt: int, limit: int, more: int) -> None:
    little, much = (deadlines(prompt + m, limit + m, speed, BOUNDS) for m in (0, more))
    assert much.first_s >= little.first_s
    assert much.total_s >= little.total_s
    assert deadlines(prompt, None, speed, BOUNDS).total_s >= little.total_s


def test_what_was_never_measured_gets_the_ceiling() -> None:
    found = deadlines(10, 10, Speed(), BOUNDS)
    assert (found.first_s, found.next_s, found.total_s) == (600, 60, 3600)
    short = after_first(Speed(), 10, 0.1)
    assert deadlines(10, 10, short, BOUNDS).first_s == 120
    assert deadlines(d.LARGE_PROMPT_TOKENS, 10, short, BOUNDS).first_s == 600


def test_a_long_prompt_on_a_slow_tier_gets_the_time_its_prefill_needs() -> None:
    speed = Speed()
    for _ in range(20):
        speed = after_first(speed, 10_000, 10.0)
    assert 120 < deadlines(100_000, 10, speed, BOUNDS).first_s < 600
    assert deadlines(100_000, 10, speed, BOUNDS).first_s > 2 * 100
    assert deadlines(10_000, 10, speed, BOUNDS).first_s == 120


def test_a_wait_that_ran_into_its_deadline_makes_the_next_longer() -> None:
    speed = Speed()
    for _ in range(50):
        speed = after_first(speed, 10, 0.2)
    lengths = []
    for _ in range(3):
        first_s = deadlines(10, 10, speed, BOUNDS).first_s
        lengths.append(first_s)
        speed = after_first(speed, 10, first_s)
    assert lengths == sorted(lengths)
    assert lengths[-1] > lengths[0]


def test_a_growing_queue_is_followed() -> None:
    """A burst: each first token comes later than the one before; none may be given up."""
    speed = Speed()
    for _ in range(20):
        speed = after_first(speed, 10, 0.2)
    for waited_s in range(1, 250):
        assert deadlines(10, 100, speed, BOUNDS).first_s > waited_s
        speed = after_first(speed, 10, float(waited_s))


def test_the_usual_answer_is_learned() -> None:
    speed = Speed()
    for _ in range(60):
        speed = after_answer(speed, 100, 5.0)
    assert speed.answer_tokens == 100
    assert speed.gap_s is not None
    assert abs(speed.gap_s.mean - 5 / 99) < 1e-6
