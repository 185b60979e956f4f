"""Tells the starter of this process where it listens: one line of JSON, written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write(path: Path, addresses: dict[str, str]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(addresses) + "\n")
    temporary.replace(path)


def url(host: str, port: int) -> str:
    """How this machine itself reaches a listening address."""
    shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
