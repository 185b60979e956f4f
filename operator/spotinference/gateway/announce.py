"""Tells the starter of this process where it listens: one line of JSON, written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write(path: Path, addresses: dict[str, str]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(addresses) + "\n")
    temporary.replace(path)
