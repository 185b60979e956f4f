"""Short names for the folders that stand for a container's /tmp.

Programs bind UNIX sockets in their temporary directory, and a socket's path has 107 bytes at most;
a pod's folder alone takes more. So TMPDIR is a symbolic link in this machine's own temporary
directory. The link says by its target whose it is: nothing else has to remember it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from spotinference import errors

_PREFIX = "si-"


def to(folder: Path) -> Path:
    """The link to the folder, made when it is not there; `ConfigInvalid` when the name is taken."""
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    link = Path(tempfile.gettempdir()) / f"{_PREFIX}{os.getuid()}-{digest}"
    with contextlib.suppress(FileExistsError):
        link.symlink_to(folder)
    if _target(link) != folder:
        raise errors.ConfigInvalid(f"{link} is not a link to {folder}: remove it")
    return link


def forget(below: Path) -> None:
    """Removes the links to all folders below this one, whether or not they still exist."""
    for link in Path(tempfile.gettempdir()).glob(f"{_PREFIX}{os.getuid()}-*"):
        target = _target(link)
        if target is not None and target.is_relative_to(below):
            with contextlib.suppress(FileNotFoundError):
                link.unlink()


def _target(link: Path) -> Path | None:
    try:
        return link.readlink()
    except OSError:
        return None
