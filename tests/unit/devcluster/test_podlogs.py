"""Container logs: bounded while their writer goes on."""

from __future__ import annotations

from pathlib import Path

from spotinference.devcluster import podlogs


def test_a_rotated_log_keeps_the_past_and_goes_on_for_its_writer(tmp_path: Path) -> None:
    log = tmp_path / "ns_pod_main_0.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"before\n")
        podlogs._rotate(log)
        writer.write(b"after\n")
    assert (tmp_path / "ns_pod_main_0.log.1").read_text() == "before\n"
    assert log.read_text() == "after\n"
    podlogs.forget(log)
    assert list(tmp_path.iterdir()) == []


def test_the_tail_is_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("x" * 100 + "end\n")
    assert podlogs.tail(log, 10) == "xxxxxxend"
