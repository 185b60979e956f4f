"""Process sessions: nothing that a container forks survives it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from spotinference.devcluster import sessions
from spotinference.devcluster.paths import ClusterPaths
from tests.support.eventually import eventually
from tests.support.nodes import alive

FORKS = """
import subprocess, sys, time
apart = subprocess.Popen(['sleep', '600'], process_group=0)
print(apart.pid, flush=True)
time.sleep({seconds}); sys.exit({code})
"""


async def start(folder: Path, seconds: float, code: int) -> tuple[sessions.Session, int]:
    """A session whose child has made a process group of its own."""
    output = folder / "log"
    script = FORKS.format(seconds=seconds, code=code)
    session = await sessions.start(
        [sys.executable, "-c", script], env=dict(os.environ), cwd=folder, output=output
    )
    child = await eventually(lambda: output.exists() and output.read_text().strip(), 10)
    return session, int(str(child))


async def test_the_children_end_with_their_leader(tmp_path: Path) -> None:
    session, child = await start(tmp_path, 0.1, 3)
    assert await session.wait() == 3
    await eventually(lambda: not alive(child), 5)


async def test_a_killed_session_reports_the_signal_as_a_container_does(tmp_path: Path) -> None:
    session, child = await start(tmp_path, 600, 0)
    session.kill()
    assert await session.wait() == 137
    await eventually(lambda: not alive(child), 5)


async def test_the_ledger_finds_what_a_killed_agent_left(tmp_path: Path) -> None:
    session, child = await start(tmp_path, 600, 0)
    ledger = tmp_path / "sessions.jsonl"
    sessions.record(ledger, session)
    with ledger.open("a") as file:
        file.write('{"sid": 1, "star')  # cut by a crash
    killed = sessions.kill_leftovers(ClusterPaths("nobody", tmp_path), ledger)
    assert killed == 2
    assert await session.wait() == 137
    # An orphan is a corpse until init has collected it.
    await eventually(lambda: not alive(child), 5)
    assert not ledger.exists()
