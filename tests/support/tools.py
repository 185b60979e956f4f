"""Programs that tests of the chart and of the examples call: helm, kubeconform, argocd."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from spotinference import assets as shipped
from spotinference.devcluster import assets
from spotinference.devcluster.progress import Progress

TIMEOUT_S = 120.0


@cache
def program(name: str) -> Path:
    """The program's path; built once per machine when it is absent."""
    with Progress() as progress:
        return assets.tools([name], progress)[name]


def run(
    name: str, *arguments: str, stdin: str = "", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs it to its end; the caller looks at the exit code."""
    return subprocess.run(
        [program(name), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**os.environ, **(env or {})},
    )


def output(name: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Standard output; AssertionError with all it said when it fails."""
    done = run(name, *arguments, env=env)
    assert done.returncode == 0, f"{name} {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def repository() -> Path:
    """The checkout that the tests belong to."""
    return shipped.find("crds").parent


def chart() -> str:
    return str(shipped.find("charts/spotinference"))
