"""Files that ship beside the code: CRDs, the chart, the module files of the control plane.

They stand at the repository's root; a wheel carries them under `_assets/` with the same relative
paths (`force-include` in pyproject.toml). Whoever needs one asks `find` and never builds a path.
"""

from __future__ import annotations

from pathlib import Path

from spotinference import errors

_PACKAGE = Path(__file__).resolve().parent


def find(name: str) -> Path:
    """The file or folder of that repository path, e.g. `crds` or `charts/spotinference/files`.

    `ConfigInvalid` when the installation is incomplete.
    """
    for root in (_PACKAGE / "_assets", _PACKAGE.parent.parent):
        candidate = root / name
        if candidate.exists():
            return candidate
    raise errors.ConfigInvalid(
        f"this installation of spotinference lacks {name}: "
        "install the released wheel, or run from a complete checkout"
    )
