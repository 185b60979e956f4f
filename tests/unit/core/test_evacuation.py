"""Who leaves a replica with a notice, and when."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from spotinference.core.evacuation import Notice, Progress, Verdict, leaving, verdict

NOTICE = Notice(left_s=30, margin_s=3, tick_s=0.25)


def answer(**more: Any) -> Progress:
    base: dict[str, Any] = {
        "movable": True, "repeats": False, "tokens": 10, "tokens_left": 1000, "tokens_per_s": 10.0,
    }  # fmt: skip
    return Progress(**base | more)


def test_what_fits_before_the_deadline_finishes_here() -> None:
    assert verdict(answer(tokens_left=270), NOTICE) is Verdict.FINISH
    assert verdict(answer(tokens_left=271), NOTICE) is Verdict.MOVE


def test_an_answer_without_bound_or_measured_speed_moves() -> None:
    assert verdict(answer(tokens_left=None), NOTICE) is Verdict.MOVE
    assert verdict(answer(tokens_per_s=None), NOTICE) is Verdict.MOVE


def test_what_cannot_be_carried_on_stays_to_the_end() -> None:
    assert verdict(answer(movable=False, tokens_left=None), NOTICE) is Verdict.STAY
    assert leaving([answer(movable=False)], Notice(-5, 3, 0.25)) == []


def test_replays_go_first_the_shortest_before_all_then_the_longest_way_to_go() -> None:
    answers = [
        answer(tokens_left=2000),
        answer(tokens_left=None),
        answer(repeats=True, tokens=90),
        answer(repeats=True, tokens=5),
    ]
    order = []
    for _ in range(4):
        going = leaving(answers, NOTICE)
        order += going
        for place in going:
            answers[place] = answer(movable=False)
    assert order == [3, 2, 1, 0]


def test_without_time_all_go_at_once() -> None:
    assert len(leaving([answer()] * 9, Notice(3, 3, 0.25))) == 9


ANSWERS = st.builds(
    Progress,
    movable=st.booleans(),
    repeats=st.booleans(),
    tokens=st.integers(0, 5000),
    tokens_left=st.none() | st.integers(0, 5000),
    tokens_per_s=st.none() | st.floats(0.1, 500),
)


@given(st.lists(ANSWERS, max_size=80), st.floats(4, 120))
def test_all_that_must_go_is_gone_in_time_and_never_in_a_rush(
    answers: list[Progress], left_s: float
) -> None:
    """Tick by tick: nobody moves who would finish, everybody who would not is out by the margin."""
    tick_s, margin_s = 0.25, 3.0
    here = {place: one for place, one in enumerate(answers) if one.movable}
    must = {
        p for p, o in here.items() if verdict(o, Notice(left_s, margin_s, tick_s)) is Verdict.MOVE
    }
    most = len(must) * tick_s / max((left_s - margin_s) / 2, tick_s)
    gone: set[int] = set()
    while left_s > margin_s:
        staying = [place for place in must if place not in gone]
        portion = leaving([here[p] for p in staying], Notice(left_s, margin_s, tick_s))
        if (left_s - margin_s) / 2 > 4 * tick_s:
            assert len(portion) <= 2 * most + 1
        gone |= {staying[place] for place in portion}
        left_s -= tick_s
    assert gone == must
