"""How many connections a gateway may have is a matter of its settings, not of where it is started."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource
from spotinference.gateway.app import _room_for_descriptors
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))
_room_for_descriptors(600)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def limits(hard: str) -> list[str]:
    """Soft and hard after a gateway has begun with a soft limit of 256 descriptors."""
    command = [sys.executable, "-c", PROGRAM.format(hard=hard)]
    return subprocess.run(
        command, capture_output=True, check=True, text=True, timeout=60
    ).stdout.split()


def test_a_low_limit_of_descriptors_is_raised_as_far_as_it_may_be() -> None:
    soft, hard = limits("hard")
    assert soft == "600" != hard
    assert limits("400") == ["400", "400"]
