"""Loopback addresses of an embedded cluster: one 127.A.0.0/16 block each, no fixed ports.

Linux routes all of 127/8 to the machine itself, so every pod can have an address of its own with
an ordinary user's rights. A block is held by an abstract Unix socket: the lock has exactly the
scope of the loopback (the network namespace), holds between users, and dies with its process.
"""

from __future__ import annotations

import errno
import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

from spotinference import errors

FIRST_BLOCK, LAST_BLOCK = 16, 250
"""127.0 is everybody's, 127.1 and a few more are used by other tools."""
POD_PORT = 8000


class Block:
    """A 127.A.0.0/16 block, ours until `release` or the end of the process."""

    def __init__(self, number: int, lock: socket.socket) -> None:
        self.number = number
        self._lock = lock

    @property
    def prefix(self) -> str:
        return f"127.{self.number}"

    @property
    def apiserver(self) -> str:
        return f"{self.prefix}.0.1"

    @property
    def etcd(self) -> str:
        return f"{self.prefix}.0.2"

    @property
    def control(self) -> str:
        """The supervisor's own control API."""
        return f"{self.prefix}.0.3"

    @property
    def host(self) -> str:
        """The host address of every simulated node."""
        return f"{self.prefix}.0.10"

    @property
    def hub(self) -> str:
        return f"{self.prefix}.0.4"

    @property
    def operator(self) -> str:
        return f"{self.prefix}.0.5"

    @property
    def gateway(self) -> str:
        return f"{self.prefix}.0.6"

    def pods(self) -> Iterator[str]:
        """Pod addresses in order: 127.A.1.1 … 127.A.254.254."""
        return (f"{self.prefix}.{c}.{d}" for c in range(1, 255) for d in range(1, 255))

    def release(self) -> None:
        self._lock.close()


def allocate(name: str) -> Block:
    """A block that no live cluster holds and nothing listens in; the same for a name if free."""
    span = LAST_BLOCK - FIRST_BLOCK + 1
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % span
    busy = _listening_blocks()
    refusal = "every block is held by another cluster"
    for step in range(span):
        number = FIRST_BLOCK + (start + step) % span
        if number in busy:
            continue
        lock = _hold(number)
        if lock is None:
            continue
        reason = _unusable(f"127.{number}.1.1")
        if reason is None:
            return Block(number, lock)
        lock.close()
        refusal = reason
    raise errors.ConfigInvalid(f"no free 127.x.0.0/16 block for cluster {name!r}: {refusal}")


def free_port(address: str) -> int:
    """A port that is free at this address now; the block is ours, so it stays so."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def _hold(number: int) -> socket.socket | None:
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(f"\0spotinference-block-127.{number}")
    except OSError as error:
        lock.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    return lock


def _unusable(address: str) -> str | None:
    """Why engines could not listen here, as a sentence; None when they can."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, POD_PORT))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return (
                    f"port {POD_PORT} is taken on all addresses by another program "
                    f"(see `ss -ltnp sport = :{POD_PORT}`); stop it or bind it to one address"
                )
            return (
                f"{address} cannot be bound ({error.strerror}); "
                "the embedded cluster needs Linux with the whole 127.0.0.0/8 on lo"
            )
    return None


def _listening_blocks() -> set[int]:
    """Second bytes of all 127.x addresses somebody listens on (processes of a dead cluster, say)."""
    blocks: set[int] = set()
    try:
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return blocks
    for line in lines:
        fields = line.split()
        if len(fields) > 3 and fields[3] == "0A":  # TCP_LISTEN
            address = bytes.fromhex(fields[1].split(":")[0])[::-1]
            if address[0] == 127:
                blocks.add(address[1])
    return blocks
