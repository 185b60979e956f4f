"""Argo CD's view: health and actions, in Argo's own test format, through its own binary.

`health_test.yaml` and `actions/action_test.yaml` have the format of argo-cd's repository, so that
the scripts can be given upstream as they are.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from spotinference.api.kinds import Json
from tests.support import tools

ARGOCD = tools.repository() / "examples/argocd"
SCRIPTS = ARGOCD / "resource_customizations/spotinference.dev"
SETTINGS = ARGOCD / "argocd-cm.yaml"


def resource_overrides(command: str, *arguments: str) -> str:
    done = tools.run(
        "argocd",
        *("admin", "settings", "resource-overrides", command, *arguments),
        *("--argocd-cm-path", str(SETTINGS)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cases(pattern: str, key: str) -> list[tuple[Path, Json]]:
    return [
        (file.parent, case)
        for file in sorted(SCRIPTS.glob(pattern))
        for case in yaml.safe_load(file.read_text())[key]
    ]


def name_of(value: object) -> str | None:
    if isinstance(value, dict):
        return (
            f"{Path(value['inputPath']).stem}{'-' + value['action'] if 'action' in value else ''}"
        )
    return value.parent.name if isinstance(value, Path) and value.name == "actions" else None


@pytest.mark.parametrize(("folder", "case"), cases("*/health_test.yaml", "tests"), ids=name_of)
def test_health(folder: Path, case: Json) -> None:
    out = resource_overrides("health", str(folder / case["inputPath"]))
    status = re.search(r"STATUS: (.*)", out)
    message = re.search(r"MESSAGE: (.*)", out)
    assert status is not None, out
    assert message is not None, out
    assert status[1].strip() == case["healthStatus"]["status"]
    assert message[1].strip() == case["healthStatus"]["message"]


def test_a_sleeping_tier_is_healthy() -> None:
    """The promise that Argo CD, Helm and `kubectl wait` rest on, said once more by name."""
    out = resource_overrides("health", str(SCRIPTS / "InferenceTier/testdata/asleep.yaml"))
    assert "STATUS: Healthy" in out


@pytest.mark.parametrize(
    ("folder", "case"), cases("*/actions/action_test.yaml", "discoveryTests"), ids=name_of
)
def test_the_actions_on_offer(folder: Path, case: Json) -> None:
    out = resource_overrides("list-actions", str(folder / case["inputPath"]))
    disabled = dict(line.split()[:2] for line in out.splitlines()[1:] if line.strip())
    assert disabled == {entry["name"]: str(entry["disabled"]).lower() for entry in case["result"]}


@pytest.mark.parametrize(
    ("folder", "case"), cases("*/actions/action_test.yaml", "actionTests"), ids=name_of
)
def test_an_action_changes_what_it_says(folder: Path, case: Json) -> None:
    given = folder / case["inputPath"]
    wanted = folder / case["expectedOutputPath"]
    out = resource_overrides("run-action", str(given), case["action"])
    before, after = lines(given), lines(wanted)
    assert marked(out, "<") == before - after
    assert marked(out, ">") == after - before


def marked(difference: str, sign: str) -> set[str]:
    """Lines that a diff gives to one side."""
    found = [line for line in difference.splitlines() if line.startswith(f"{sign} ")]
    return {line.removeprefix(sign).strip() for line in found}


def lines(file: Path) -> set[str]:
    body: Json = yaml.safe_load(file.read_text())
    return {line.strip() for line in yaml.safe_dump(body).splitlines()}


def test_the_application_leaves_alone_what_actions_change() -> None:
    application = yaml.safe_load((ARGOCD / "application.yaml").read_text())
    ignored = {
        entry["kind"]: entry["jsonPointers"] for entry in application["spec"]["ignoreDifferences"]
    }
    assert ignored == {
        "InferenceTier": ["/spec/paused", "/spec/replicas"],
        "GPUPool": ["/spec/cordoned"],
    }
    assert "RespectIgnoreDifferences=true" in application["spec"]["syncPolicy"]["syncOptions"]
