"""Differential fuzzing: no front of ours takes what aiohttp's parser refuses, or reads it otherwise."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.raw_table import CASES, chunks, head
from tests.support.fronts import UNDER_TEST, Front, Verdict, listener, reference

EXAMPLES = 250
"""The same ones on every run; `FUZZ_EXAMPLES=5000 make gateway` tries as many new ones."""
SHORT = [case.payload for case in CASES if len(case.payload) < 1000]
BYTES = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"_", b"-", b"+", b"0", b"1", b"f",
    b"\x80", b"\xff", b"%00", b"\r\n\r\n", b"Content-Length: 0\r\n", b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"Host: y\r\n", b"0\r\n\r\n",
    b" HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: z\r\nAuthorization: z\r\n\r\n", b"Connection: close\r\n",
    b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\n",
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A message of the table with a few bytes put in, taken out or doubled."""
    data = draw(st.sampled_from(SHORT))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 12))
        match draw(st.sampled_from(("insert", "replace", "delete", "double", "append"))):
            case "insert":
                data = data[:at] + draw(st.sampled_from(BYTES)) + data[at:]
            case "replace":
                data = data[:at] + draw(st.sampled_from(BYTES)) + data[at + size :]
            case "delete":
                data = data[:at] + data[at + size :]
            case "double":
                data = data[: at + size] + data[at:]
            case _:
                data += draw(st.sampled_from(SHORT))
    return data


FRAMING = [
    "Content-Length: 4", "Content-Length: 0", "Content-Length: 04", "Content-Length: +4",
    "Content-Length: 4 ", "content-length:4", "Content-Length: 4, 4", "Content-Length : 4",
    "Transfer-Encoding: chunked", "transfer-encoding:Chunked", "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, identity", "Transfer-Encoding:\tchunked", "Transfer-Encoding: x",
    "Host: x", "A: b", "A_B: c", "A: b\n", "Connection: keep-alive", "Connection: close",
    "Connection: Content-Length", "Trailer: Content-Length", "TE: trailers", "Expect: x",
]  # fmt: skip
BODIES = [b"", b"abcd", b"abcde", chunks(b"abcd"), chunks(b"abcd", b"Content-Length: 9\r\n"), b"0\r\n\r\n",
          b"4;x=y\r\nabcd\r\n0\r\n\r\n", b"4 \r\nabcd\r\n0\r\n\r\n", b"04\r\nabcd\r\n00\r\n\r\n",
          b"4\nabcd\n0\n\n", b"4\r\nabcdX\r\n0\r\n\r\n"]  # fmt: skip


@st.composite
def built(draw: st.DrawFn) -> bytes:
    """One to three messages out of pieces that frame, or seem to."""
    out = b""
    for _ in range(draw(st.integers(1, 3))):
        lines = draw(st.lists(st.sampled_from(FRAMING), max_size=4))
        out += head(
            *lines,
            method=draw(st.sampled_from(("POST", "GET", "HEAD", "OPTIONS", "CONNECT"))),
            target=draw(
                st.sampled_from(("/", "*", "x:1", "http://h/", "/a b", "/%00", "//", "/#"))
            ),
            version=draw(st.sampled_from(("HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0"))),
            host=draw(st.sampled_from(("x", "x:1", "", "a b", None))),
        ) + draw(st.sampled_from(BODIES))
    return out


def complaint(ours: Verdict, theirs: Verdict) -> str | None:
    """Why this may not be. We may refuse more than the reference, from some message on."""
    if ours == theirs:
        return None
    count = len(ours.seen)
    if ours.seen != theirs.seen[:count]:
        return "another reading of what was asked"
    # "waiting": it lingers for a second after its refusal, but takes nothing any more.
    refused = ours.end != "open" and ours.statuses[count:] in {(400,), (417,)}
    return None if refused else "neither the same verdict nor a refusal"


@pytest.mark.fault(57)
@pytest.mark.parametrize("name", UNDER_TEST)
def test_a_front_reads_a_message_as_aiohttp_does_or_refuses_it(name: str) -> None:
    more = int(os.environ.get("FUZZ_EXAMPLES", "0"))
    with asyncio.Runner() as runner:

        async def start() -> tuple[Front, Front, AsyncExitStack]:
            stack = AsyncExitStack()
            ours = await stack.enter_async_context(UNDER_TEST[name]())
            return ours, await stack.enter_async_context(reference()), stack

        ours, theirs, stack = runner.run(start())

        @settings(
            max_examples=more or EXAMPLES,
            derandomize=not more,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        )
        @given(data=st.one_of(mutated(), built()), cut=st.integers(0, 400))
        def check(data: bytes, cut: int) -> None:
            pieces = (cut,) if 0 < cut < len(data) else ()
            mine = runner.run(ours.verdict(data, pieces))
            other = runner.run(theirs.verdict(data, pieces))
            wrong = complaint(mine, other)
            assert wrong is None, f"{wrong}: {mine} against {other}"

        check()
        runner.run(stack.aclose())


@pytest.mark.fault(57)
async def test_the_harness_tells_fronts_apart() -> None:
    """A message that only one of them takes has two verdicts: the comparison is not blind."""
    ambiguous = head("Transfer-Encoding: gzip, chunked") + chunks(b"abcd")
    async with listener() as ours, reference() as theirs:
        refused, taken = await ours.verdict(ambiguous), await theirs.verdict(ambiguous)
    assert refused == Verdict((400,), "closed", ())
    assert taken.statuses == (200,)
    assert complaint(refused, taken) is None
    assert complaint(taken, refused) is not None
