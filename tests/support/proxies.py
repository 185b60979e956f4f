"""nginx and HAProxy in front of a gateway: their default configuration and one upstream.

async with proxy("nginx", upstream=("127.0.0.1", 8080)) as front: ...
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support import debian
from tests.support.eventually import eventually
from tests.support.raw_http import Address

START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 10.0


def _nginx(folder: Path, front: Address, upstream: Address, extra: str) -> str:
    user = "user root;" if os.getuid() == 0 else ""
    temporary = "\n".join(
        f"  {name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
{temporary}
  access_log off;
  gzip on;
  server {{
    listen {front[0]}:{front[1]};
    location / {{
      proxy_pass http://{upstream[0]}:{upstream[1]};
      {extra}
    }}
  }}
}}
"""


def _haproxy(_: Path, front: Address, upstream: Address, extra: str) -> str:
    return f"""
defaults
  mode http
  timeout connect 5s
  timeout client 50s
  timeout server 50s
  {extra}
frontend front
  bind {front[0]}:{front[1]}
  default_backend gateway
backend gateway
  server gateway {upstream[0]}:{upstream[1]}
"""


_CONFIGURATION: dict[str, Callable[[Path, Address, Address, str], str]] = {
    "nginx": _nginx,
    "haproxy": _haproxy,
}
_ARGUMENTS: dict[str, Callable[[Path, Path], list[str]]] = {
    "nginx": lambda folder, file: ["-p", str(folder), "-e", f"{folder}/error.log", "-c", str(file)],
    "haproxy": lambda _, file: ["-db", "-q", "-f", str(file)],
}
"""haproxy -db: in the foreground, one process."""


@asynccontextmanager
async def proxy(name: str, upstream: Address, extra: str = "") -> AsyncIterator[Address]:
    """A proxy on a port of its own; `extra` are directives beside the upstream's."""
    program, environment = debian.program(name)
    front = ("127.0.0.1", _free_port())
    with TemporaryDirectory(prefix=f"spot-{name}-") as path:
        folder = Path(path)
        file = folder / "proxy.cfg"
        file.write_text(_CONFIGURATION[name](folder, front, upstream, extra))
        with (folder / "output").open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                program,
                *_ARGUMENTS[name](folder, file),
                stdout=output,
                stderr=output,
                stdin=asyncio.subprocess.DEVNULL,
                env=environment,
            )
        try:
            await eventually(lambda: _listens(front, process, folder), START_DEADLINE_S, name)
            yield front
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            async with asyncio.timeout(STOP_DEADLINE_S):
                await process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def _listens(front: Address, process: asyncio.subprocess.Process, folder: Path) -> bool:
    if process.returncode is not None:
        said = (folder / "output").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"the proxy ended with {process.returncode}: {said}")
    try:
        _, writer = await asyncio.open_connection(*front)
    except OSError:
        return False
    writer.close()
    return True
