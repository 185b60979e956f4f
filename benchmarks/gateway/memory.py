"""Resident memory per live stream and per parked request of our own gateway."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.gateway import measure
from benchmarks.gateway.processes import Group

SETTLE_S = 3.0


def per_request(group: Group, ip: str, port: int, model: str, count: int) -> float:
    """KiB each of `count` requests that stay open: streams that run, or parked ones."""
    with open_requests(ip, port, model, 50):  # pools and buffers that any load makes
        time.sleep(SETTLE_S)
        before = group.rss_bytes()
        with open_requests(ip, port, model, count):
            time.sleep(SETTLE_S)
            return (group.rss_bytes() - before) / count / 1024


@contextmanager
def open_requests(ip: str, port: int, model: str, count: int) -> Iterator[None]:
    """Streamed requests that nobody reads, while the block runs."""
    request = measure.request(model, stream=True)
    with ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.create_connection((ip, port), timeout=10))
            client.sendall(request)
        yield
