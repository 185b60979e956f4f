"""The command's interface: its JSON keys, its help, and errors that name the option."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spotinference import errors
from spotinference.cli.app import app
from spotinference.simulate.autoscale_run import POLICIES

KEYS = ["policy", "replica_hours", "late_fraction", "wakes", "scale_actions_per_hour", "flaps"]


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    path = tmp_path / "load.csv"
    rows = [f"{i * 60},{round(300 + 200 * math.sin(i / 20))},30000,9000" for i in range(180)]
    path.write_text("\n".join(["start_s,requests,prompt_tokens,output_tokens", *rows]) + "\n")
    return path


def invoke(*words: str) -> str:
    result = CliRunner().invoke(app, ["simulate", "autoscale", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("policy", POLICIES)
def test_json_has_exactly_the_documented_keys(workload: Path, policy: str) -> None:
    found = json.loads(
        invoke("--workload", str(workload), "--policy", policy, "--from", "0.5", "--json")
    )
    assert list(found) == KEYS
    assert found["policy"] == policy
    assert found["replica_hours"] > 0
    assert 0 <= found["late_fraction"] <= 1


def test_the_same_workload_gives_the_same_figures(workload: Path) -> None:
    words = ("--workload", str(workload), "--json")
    assert invoke(*words) == invoke(*words)


def test_without_json_a_table_says_what_each_figure_means(workload: Path) -> None:
    text = invoke("--workload", str(workload))
    assert "replica-hours" in text
    assert "waited longer than 10 s" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--policy", "best"), "--policy is 'best'; it must be one of ours, hpa"),
        (("--from", "0.5", "--to", "0.5"), "--from is 0.5 and --to is 0.5"),
        (("--min", "3", "--max", "2"), "--min is 3 and --max is 2"),
        (("--cold-start", "0"), "--cold-start is 0; it must be above 0"),
        (("--requests-per-second-per-replica", "nan"), "--requests-per-second-per-replica is nan"),
        (("--policy", "operator", "--min", "2000"), "a tier has at most 1000 replicas"),
        (("--policy", "static-peak", "--to", "1e-9"), "--from 0 --to 1e-09: this share"),
        (("--policy", "ours", "--from", "0.9999999"), "this share of the workload is shorter"),
        (("--service-of", "a/b/1"), "--service-of without --service-model"),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(
    workload: Path, words: tuple[str, ...], said: str
) -> None:
    with pytest.raises(errors.ConfigInvalid) as raised:
        invoke("--workload", str(workload), *words)
    assert said in str(raised.value)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigInvalid, match=r"none\.csv"):
        invoke("--workload", str(tmp_path / "none.csv"))
