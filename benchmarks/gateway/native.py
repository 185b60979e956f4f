"""The mock and the load generator, compiled on the spot: cheaper than any proxy they measure."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from spotinference.devcluster.paths import cache_dir

SOURCES = Path(__file__).parent / "native"


def program(name: str) -> Path:
    """Path of a program, compiled unless these very sources were compiled before."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("error: no C compiler found. Install one (apt install gcc), or set CC.")
    sources = [SOURCES / "net.h", SOURCES / f"{name}.c"]
    known = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    target = cache_dir() / "gateway-benchmark" / f"{name}-{known}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, "-O2", "-o", fresh, sources[1]], check=True)
        fresh.replace(target)
    return target
