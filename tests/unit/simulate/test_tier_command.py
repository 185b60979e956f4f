"""`spotinference simulate tier`: its JSON, its picture, and what it says to wrong input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spotinference import errors
from spotinference.cli.app import app

TIER = """
apiVersion: spotinference.dev/v1alpha1
kind: InferenceTier
metadata: {name: chat}
spec:
  model: {source: hf://acme/tiny}
  placement: {pools: [spot, steady]}
"""
POOLS = """
apiVersion: spotinference.dev/v1alpha1
kind: GPUPool
metadata: {name: spot}
spec: {capacityType: spot, zones: [a, b], price: {microUSDPerHour: 1000000}}
---
apiVersion: spotinference.dev/v1alpha1
kind: GPUPool
metadata: {name: steady}
spec: {capacityType: on-demand, zones: [a], price: {microUSDPerHour: 3000000}}
"""
KEYS = {
    "policy", "hours", "requests", "late", "late_fraction", "parked", "continued", "refused", "cut",
    "output_tokens", "availability", "wakes", "reclaims", "launches", "launch_failures",
    "replica_hours", "node_hours", "usd", "usd_by_line", "usd_by_capacity_type",
    "usd_per_million_output_tokens",
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "tier.yaml").write_text(TIER)
    (tmp_path / "pools.yaml").write_text(POOLS)
    rows = [f"{i * 300},{30 if i < 12 else 0},3000,1500" for i in range(24)]
    header = "start_s,requests,prompt_tokens,output_tokens"
    (tmp_path / "load.csv").write_text("\n".join([header, *rows]))
    data = {"metadata": {"gap_seconds": 300}, "data": [1, 1, 0, 1] * 6}
    (tmp_path / "a.json").write_text(json.dumps(data))
    return tmp_path


def run(files: Path, *more: str) -> tuple[int, str]:
    arguments = ["simulate", "tier"]
    for option, name in (
        ("--tier", "tier.yaml"),
        ("--pools", "pools.yaml"),
        ("--workload", "load.csv"),
    ):
        arguments += [option, str(files / name)]
    result = CliRunner().invoke(app, [*arguments, *more])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        assert isinstance(result.exception, errors.SpotinferenceError)
        return result.exit_code, str(result.exception)
    return result.exit_code, result.stdout


def test_the_same_replay_gives_the_same_in_every_process(files: Path) -> None:
    """Nothing hangs on the order of a set, which is another in each process."""
    zones = "abcdef"
    pools = POOLS.replace("zones: [a, b]", f"zones: [{', '.join(zones)}]")
    (files / "pools.yaml").write_text(pools)
    tier = TIER + "  scaling: {minReplicas: 2, maxReplicas: 8}\n"
    (files / "tier.yaml").write_text(tier)
    rows = [f"{i * 300},{1200 + 400 * (i % 4)},3000,150" for i in range(24)]
    header = "start_s,requests,prompt_tokens,output_tokens"
    (files / "load.csv").write_text("\n".join([header, *rows]))
    command = [sys.executable, "-m", "spotinference", "simulate", "tier", "--json"]
    for option, name in (("tier", "tier.yaml"), ("pools", "pools.yaml"), ("workload", "load.csv")):
        command += [f"--{option}", str(files / name)]
    for number, zone in enumerate(zones):
        # Each is full or gone for a while, several at once.
        data = [3 * int((step + 2 * number) % 7 > 1 and step % 5 > 0) for step in range(24)]
        trace = {"metadata": {"gap_seconds": 300}, "data": data}
        (files / f"{zone}.json").write_text(json.dumps(trace))
        command += ["--trace", f"spot/{zone}={files}/{zone}.json"]
    seen = {
        subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(seen) == 1


def test_one_json_object_with_the_others_beside_ours(files: Path) -> None:
    code, text = run(files, "--trace", f"spot/a={files}/a.json", "--json")
    assert code == 0
    found = json.loads(text)
    assert found.keys() >= KEYS
    assert found["policy"] == "ours"
    assert [row["policy"] for row in found["compared"]] == ["on-demand-static", "spothedge+hpa"]
    assert all(row.keys() == KEYS for row in found["compared"])
    assert found["requests"] == 360
    assert found["usd"] == pytest.approx(sum(found["usd_by_line"].values()), abs=1e-3)


def test_a_table_for_people(files: Path) -> None:
    code, text = run(files)
    assert code == 0
    assert "$ per million output tokens" in text
    assert "spothedge+hpa" in text


def test_a_picture(files: Path) -> None:
    where = files / "run.png"
    code, _ = run(files, "--alone", "--plot", str(where))
    assert code == 0
    assert where.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("pools.yaml", ", price: {microUSDPerHour: 1000000}", ""), "spot has no price"),
        (("pools.yaml", "name: steady", "name: other"), "no GPUPool named steady"),
        (("tier.yaml", "InferenceTier", "Deployment"), "0 documents of kind InferenceTier"),
        (("tier.yaml", "hf://acme/tiny", "acme"), "spec.model.source"),
        (("tier.yaml", "spec:", "spec: ["), "--tier"),
        (("load.csv", "requests", "calls"), "column requests is missing"),
    ],
)
def test_wrong_files_are_refused_by_field(
    files: Path, change: tuple[str, str, str], words: str
) -> None:
    name, old, new = change
    path = files / name
    path.write_text(path.read_text().replace(old, new))
    code, text = run(files)
    assert code != 0
    assert words in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--trace", "a.json"), "POOL/ZONE=FILE"),
        (("--trace", "spot/c=a.json"), "no market spot/c"),
        (("--trace", "spot/a=nowhere.json"), "nowhere.json"),
        (("--from", "0.5", "--to", "0.5"), "--from 0.5 is not below --to 0.5"),
        (("--plot", "/nowhere/run.png", "--alone"), "--plot /nowhere/run.png"),
    ],
)
def test_wrong_options_are_refused_by_name(
    files: Path, options: tuple[str, ...], words: str
) -> None:
    code, text = run(files, *options)
    assert code != 0
    assert words in text


def test_a_trace_shorter_than_the_workload_is_refused_with_what_would_do(files: Path) -> None:
    data = {"metadata": {"gap_seconds": 300}, "data": [1] * 12}
    (files / "a.json").write_text(json.dumps(data))
    code, text = run(files, "--trace", f"spot/a={files}/a.json")
    assert code != 0
    assert "--to 0.50" in text
