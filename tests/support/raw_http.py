"""HTTP as bytes: what a front answers to them, and whether it hangs up.

    answers = await exchange(address, payload)

After every payload comes a *sentinel*, a well-formed request that only an open connection with an
empty buffer answers: so "closed" is told apart from "slow" without waiting for silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

READ_DEADLINE_S = 10.0
TURNS = 3
"""Of the loop after each piece: a front on the same loop has read it by then."""
SENTINEL = b"GET /v1/models HTTP/1.1\r\nHost: sentinel\r\nConnection: close\r\n\r\n"
SENTINEL_STATUS = 401
"""It has no key; every well-formed payload has one, so that no other answer has this status."""

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back to a payload, the sentinel's answer taken off."""

    statuses: tuple[int, ...]
    """of the answers in order, interim ones (1xx) left out"""
    closed: bool
    """the front did not take the sentinel for a new request"""
    interim: tuple[int, ...] = ()


class NotHttp(AssertionError):
    """The front answered something that is no HTTP."""


async def exchange(
    address: Address, payload: bytes, *, sentinel: bool = True, pieces: Sequence[int] = ()
) -> Answers:
    """Sends payload and sentinel, cut where `pieces` says, reads until the front closes."""
    raw = await talk(address, payload + (SENTINEL if sentinel else b""), pieces)
    statuses = [answer.status for answer in parse(raw)]
    final = [status for status in statuses if status >= 200]
    answered = sentinel and final[-1:] == [SENTINEL_STATUS]
    return Answers(
        tuple(final[:-1] if answered else final),
        closed=not answered,
        interim=tuple(status for status in statuses if status < 200),
    )


async def talk(address: Address, data: bytes, pieces: Sequence[int] = ()) -> bytes:
    """Everything that the front says to this, until it closes or resets."""
    reader, writer = await asyncio.open_connection(*address)
    received = bytearray()
    try:
        async with asyncio.timeout(READ_DEADLINE_S):
            sending = asyncio.create_task(_send(writer, data, pieces))
            with contextlib.suppress(ConnectionError):
                while part := await reader.read(65536):
                    received += part
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending
    except TimeoutError:
        raise AssertionError(
            f"the front neither answers nor closes; so far {bytes(received[:300])!r}"
        ) from None
    finally:
        writer.transport.abort()
    return bytes(received)


async def _send(writer: asyncio.StreamWriter, data: bytes, pieces: Sequence[int]) -> None:
    """A piece leaves when the front has had its turn to read the one before."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(ConnectionError):
        for start, end in pairwise((0, *pieces, len(data))):
            writer.write(data[start:end])
            await writer.drain()
            for _ in range(TURNS):
                await asyncio.sleep(0)


_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n]*)?\r\n")
_ANY_STATUS = re.compile(rb"HTTP/[0-9]\.[0-9] ([1-5][0-9][0-9])(?: [^\r\n]*)?\r\n")


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    head: bytes
    body: bytes
    whole: bool
    """its end came as its head had said"""


def parse(raw: bytes, *, any_version: bool = False) -> list[Answer]:
    """The answers in order, interim ones included.

    Strict, as a client must be: one message after the other, with nothing in between. An answer
    to HEAD cannot be told from others here: it must be the last.
    """
    answers: list[Answer] = []
    rest = raw
    while rest:
        match = (_ANY_STATUS if any_version else _STATUS).match(rest)
        end = rest.find(b"\r\n\r\n")
        if match is None or end < 0:
            raise NotHttp(f"no HTTP answer: {rest[:200]!r}")
        status, head = int(match[1]), rest[: end + 2]
        body, whole, rest = _body(status, head.lower(), rest[end + 4 :])
        answers.append(Answer(status, head, body, whole))
    return answers


def _body(status: int, head: bytes, rest: bytes) -> tuple[bytes, bool, bytes]:
    if status < 200 or status in {204, 304}:
        return b"", True, rest
    if re.search(rb"\r\ntransfer-encoding: *chunked\r\n", head):
        return _chunked(rest)
    length = re.search(rb"\r\ncontent-length: *(\d+)\r\n", head)
    if length is None:
        return rest, True, b""  # until it closes
    size = int(length[1])
    return rest[:size], len(rest) >= size, rest[size:]


def _chunked(rest: bytes) -> tuple[bytes, bool, bytes]:
    body = b""
    while True:
        line, found, after = rest.partition(b"\r\n")
        if not found:
            return body, False, b""
        size = int(line.partition(b";")[0], 16)
        body += after[:size]
        if size == 0:
            return body, after.startswith(b"\r\n"), after[2:]
        if len(after) < size + 2:
            return body, False, b""
        rest = after[size + 2 :]
