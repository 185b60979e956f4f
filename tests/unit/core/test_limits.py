"""Limits: a window forgets exactly, and processes together stay within their bound."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spotinference.core.limits import WINDOW_S, Processes, Window, burst, share


def test_what_was_used_counts_for_a_minute() -> None:
    window = Window()
    window.add(100.9, 3)
    window.add(130.0, 2)
    assert window.used(160.8) == 5
    assert window.used(161.0) == 2
    assert window.used(200) == 0


def test_the_wait_is_long_enough_and_not_longer() -> None:
    window = Window()
    window.add(100.5, 3)
    window.add(130.5, 2)
    wait_s = window.wait_s(140.0, 5, 2)
    assert wait_s == 21.0
    assert window.used(140.0 + wait_s) + 2 <= 5
    assert window.wait_s(140.0, 10, 5) == 0
    assert window.reset_s(140.0) == 51.0


def test_a_correction_takes_back_where_it_was_and_adds_now() -> None:
    window = Window()
    window.add(10, 100)
    window.correct(20, 10, -60)
    assert window.used(20) == 40
    window.correct(30, 10, 25)
    assert window.used(30) == 65
    assert window.used(75) == 25  # the first use is over, the correction is not
    window.correct(200, 10, -40)  # of a use that counts no more
    assert window.used(200) == 0


def test_a_lone_process_has_all_and_every_share_lets_something_through() -> None:
    assert share(60, 1, newcomer=False) == 60
    for limit in (1, 2, 7, 60):
        for processes in (1, 2, 3, 50):
            for newcomer in (False, True):
                assert share(limit, processes, newcomer=newcomer) >= 1


@dataclass
class Gateway:
    processes: Processes = field(default_factory=Processes)
    window: Window = field(default_factory=Window)

    def admits(self, now: float, limit: int) -> bool:
        allowed = share(limit, self.processes.count(now), newcomer=self.processes.newcomer(now))
        if self.window.used(now) >= allowed:
            return False
        self.window.add(now, 1)
        return True


LAG_S = 10.0
"""Others see a process that came or went so late; a watch takes a second."""

steps = st.lists(
    st.tuples(
        st.sampled_from(["ask", "saturate", "join", "leave", "pass"]),
        st.integers(0, 5),
        st.floats(0, 40),
    ),
    min_size=4,
    max_size=60,
)


@pytest.mark.fault(67)
@example(
    limit=40,
    first=2,
    script=[("saturate", 0, 0), ("leave", 0, 0), ("pass", 0, 20), ("saturate", 0, 0)],
)
@given(limit=st.integers(1, 40), first=st.integers(1, 3), script=steps)
def test_processes_never_admit_more_than_limit_and_bursts(
    limit: int, first: int, script: list[tuple[str, int, float]]
) -> None:
    now = 1000.0
    alive: list[Gateway] = []
    spans: dict[int, list[float]] = {}
    admitted: list[float] = []
    notes: list[tuple[float, Gateway, int]] = []

    def join(*, beside_others: bool) -> None:
        gateway = Gateway()
        alive.append(gateway)
        spans[id(gateway)] = [now, float("inf")]
        gateway.processes.started(now, beside_others=beside_others)
        gateway.processes.note(now, len(alive))
        kept.append(gateway)
        notes.extend((now + LAG_S, other, len(alive)) for other in alive)

    def pass_time(seconds: float) -> float:
        later = now + seconds
        for due in [n for n in notes if n[0] <= later]:
            due[1].processes.note(due[0], due[2])
            notes.remove(due)
        return later

    kept: list[Gateway] = []
    join(beside_others=False)
    for _ in range(first - 1):
        join(beside_others=True)
    now = pass_time(200)
    for action, which, amount in script:
        if action == "join" and len(alive) < 6:
            join(beside_others=True)
        elif action == "leave" and len(alive) > 1:
            gone = alive.pop(which % len(alive))
            spans[id(gone)][1] = now
            notes.extend((now + LAG_S, other, len(alive)) for other in alive)
        elif action == "ask":
            gateway = alive[which % len(alive)]
            admitted.extend(now for _ in range(int(amount)) if gateway.admits(now, limit))
        elif action == "saturate":
            admitted.extend(now for g in alive for _ in range(limit) if g.admits(now, limit))
        else:
            now = pass_time(amount)
    for start in admitted:
        seen = sum(born < start + WINDOW_S and died >= start for born, died in spans.values())
        total = sum(start <= at < start + WINDOW_S for at in admitted)
        assert total <= limit + (seen - 1) * burst(limit)
