"""What pyproject.toml declares is used, and the lock files hold on any mirror."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from spotinference import assets

ROOT = assets.find("crds").parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {"prometheus-client": "prometheus_client", "pyyaml": "yaml", "huggingface_hub": ""}
"""Distribution -> module where they differ."""
LOCKS = sorted(
    file for file in (ROOT / "requirements").glob("*.txt") if "overrides" not in file.name
)
SOURCES = "\n".join(
    path.read_text()
    for path in (ROOT / "operator").rglob("*.py")
    if "__pycache__" not in path.parts
)


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_every_declared_dependency_is_imported(requirement: str) -> None:
    name = re.split(r"[<>=\[ ]", requirement)[0]
    module = MODULES.get(name) or name.replace("-", "_")
    assert re.search(rf"^\s*(import|from) {module}\b", SOURCES, re.MULTILINE), module


@pytest.mark.parametrize("file", LOCKS, ids=lambda f: f.name)
def test_locked_requirements_have_hashes_and_name_no_index(file: Path) -> None:
    text = file.read_text()
    assert not re.search(r"https?://|--index|--extra-index|--find-links", text)
    pinned = re.findall(r"^([A-Za-z0-9_.-]+)==", text, re.MULTILINE)
    assert len(pinned) >= 1
    assert text.count("--hash=sha256:") >= len(pinned)


def test_the_runtime_lock_is_part_of_the_development_lock() -> None:
    locks = [
        set(
            re.findall(
                r"^([A-Za-z0-9_.-]+==\S+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE
            )
        )
        for name in ("runtime.txt", "dev.txt")
    ]
    assert locks[0] <= locks[1]


def test_the_root_help_names_every_command_without_importing_it() -> None:
    script = (
        "import sys; sys.argv = ['spotinference', '--help']\n"
        "from spotinference.cli.app import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "print(sorted(m for m in sys.modules if m.startswith('spotinference.') and m.count('.') == 2))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert "operator" in done.stdout
    assert "spotinference.cli.operator" not in done.stdout
