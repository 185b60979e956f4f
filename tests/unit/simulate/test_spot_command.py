"""`spotinference simulate spot` as a script and as a person use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spotinference import errors
from spotinference.cli.app import app


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "us-east-1a_v100_1.json"
    path.write_text(json.dumps({"metadata": {"gap_seconds": 300}, "data": [2, 1, 0, 2] * 30}))
    return str(path)


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["simulate", "spot", *words])


def test_json_is_one_object_with_the_agreed_keys(trace: str) -> None:
    result = run("--trace", trace, "--windows", "2", "--window-hours", "4", "--json",
                 "--policy", "ours", "--replicas", "2", "--seed", "3")  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    keys = {"policy", "availability", "cost", "preemptions", "launches", "launch_failures",
            "on_demand_share", "windows"}  # fmt: skip
    assert set(found) == keys
    assert len(found["windows"]) == 2
    assert keys - {"policy", "windows"} <= set(found["windows"][0])
    assert found["launches"] == sum(w["launches"] for w in found["windows"])


def test_several_policies_make_a_table(trace: str) -> None:
    result = run("--trace", trace, "--windows", "1", "--window-hours", "2", "--policy", "ours",
                 "--policy", "spothedge", "--policy", "bound")  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = [line.split()[0] for line in result.output.splitlines()[:4]]
    assert rows == ["POLICY", "ours", "spothedge", "bound"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from", "0.5", "--to", "0.5"], "--from 0.5 --to 0.5"),
        (["--to", "1.5"], "--to 1.5"),
        (["--policy", "best"], "--policy best: use one of ours, spothedge"),
        (["--replicas", "0"], "--replicas 0: must be 1 to 1000"),
        (["--cold-start", "nan"], "--cold-start nan"),
        (["--windows", "0"], "--windows 0"),
        (["--window-hours", "100"], "--window-hours 100"),
        (["--window-hours", "1", "--cold-start", "3600"], "--cold-start 3600"),
        (["--json", "--policy", "ours", "--policy", "bound"], "one --policy at a time"),
    ],
)
def test_a_bad_option_is_named_with_what_to_do(trace: str, words: list[str], said: str) -> None:
    result = run("--trace", trace, *words)
    assert isinstance(result.exception, errors.ConfigInvalid)
    assert said in str(result.exception)
