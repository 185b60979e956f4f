"""What the gateway benchmark prints: medians of rounds, delays beyond direct, absent peers named."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest
from benchmarks.gateway import install
from benchmarks.gateway.results import Results

FIGURES = {"chunks_per_s": 100.0, "cpu_s": 0.5, "errors": 0.0, "refused": 0.0}


def results() -> Results:
    made = Results("two rounds")
    for p99 in (1.0, 3.0, 2.0):
        made.add("direct", "500", FIGURES | {"chunk_p50": 0.1, "chunk_p99": 0.5})
        made.add("nginx", "500", FIGURES | {"chunk_p50": 0.3, "chunk_p99": p99})
    made.missing["litellm"] = "no index here"
    return made


def test_a_figure_is_the_median_of_the_rounds_beyond_direct() -> None:
    row = next(row for row in results().rows() if row["system"] == "nginx")
    assert row["500 streams: added p99, ms"] == "1.50"
    assert row["500: CPU µs per chunk"] == "5000.0"


def test_a_peer_that_could_not_be_had_stands_in_the_table_with_the_reason() -> None:
    assert "| litellm |  | not measured: no index here |" in results().markdown()
    assert all("sglang-router" not in row["system"] for row in results().rows())


def test_errors_of_any_round_are_shown() -> None:
    made = results()
    made.add("nginx", "500", FIGURES | {"chunk_p50": 0.3, "chunk_p99": 1.0, "errors": 2.0})
    assert next(row for row in made.rows() if row["system"] == "nginx")["errors"] == "2"


def test_a_round_without_a_figure_does_not_count_as_one_below_all() -> None:
    made = results()
    for p99 in (-1.0, 4.0, -1.0):
        made.add("litellm, proxied", "500", FIGURES | {"chunk_p50": p99, "chunk_p99": p99})
    assert made.value("litellm, proxied", "500", "chunk_p99") == 4.0
    made.add("sglang-router", "500", FIGURES | {"chunk_p50": -1.0, "chunk_p99": -1.0})
    row = next(row for row in made.rows() if row["system"] == "sglang-router")
    assert row["500 streams: added p99, ms"] == "none came"
    assert row["requests/s"] == "-"


def test_what_waits_is_set_beside_what_runs_alone() -> None:
    made = Results("one round")
    for load, p99 in (("beside none", 2.0), ("beside parked", 2.1)):
        figures = {"concurrency": 200.0, "chunk_p50": 1.0, "chunk_p99": p99, "refused": 0.0}
        made.add("spotinference", load, FIGURES | figures | {"refusal_p50": -1, "refusal_p99": -1})
    shown = made.markdown()
    assert "| live streams while requests wait | offered 200; chunks/s 100; " in shown
    assert shown.rstrip().endswith("over that while nothing waits | 1.05 |")


def test_a_python_that_is_not_there_or_too_old_is_not_measured_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\necho 'AssertionError' >&2; exit 1\n")
    old.chmod(0o755)
    monkeypatch.setattr(install, "_SYSTEM_PYTHONS", (str(tmp_path / "missing"), str(old)))
    install.interpreter.cache_clear()
    try:
        assert install.interpreter() == (sys.executable, platform.python_version())
    finally:
        install.interpreter.cache_clear()
