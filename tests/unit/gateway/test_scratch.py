"""What a process leaves on the disk, and what is left of it when it was killed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from spotinference.gateway.scratch import LOCK, scratch

OWNER = """
import sys, tempfile, time
tempfile.tempdir = sys.argv[1]
from spotinference.gateway.scratch import scratch
with scratch() as folder:
    (folder / "door").touch()
    print(folder.name, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_ended_in_order_leaves_nothing(temporary: Path) -> None:
    with scratch() as folder:
        assert folder.parent == temporary
        (folder / "door").touch()
    assert list(temporary.iterdir()) == []


def test_what_was_killed_is_cleared_by_the_next_and_what_lives_stays(temporary: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(temporary)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    with owner, owner.stdout:
        theirs = temporary / owner.stdout.readline().strip()
        with scratch() as ours:
            assert (theirs / "door").exists()
            owner.kill()
            owner.wait(5)
            with scratch() as another:
                assert not theirs.exists()
                assert {path.name for path in temporary.iterdir()} == {ours.name, another.name}
                assert (ours / LOCK).exists()
