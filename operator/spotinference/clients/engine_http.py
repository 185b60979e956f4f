"""HTTP/1.1 to engine pods, made for the way of every token: pooled connections, few task switches.

A general client costs more than all the rest of the gateway together (decision 0011). Here
llhttp (httptools) parses, a body's bytes are handed on as they come, and one timer per connection
guards against silence. Plain HTTP to an address: no redirects, cookies, decompression or proxies.
A connection is used again only after an answer that ended exactly where its framing said.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, NoReturn, cast

import httptools

if TYPE_CHECKING:
    from spotinference.clients.engine_pool import Pool

MAX_HEAD_BYTES = 64 * 1024
"""Names and values of an answer's headers together."""
MAX_BARREN_BYTES = 4 * MAX_HEAD_BYTES
"""Read in a row without a byte of body: llhttp takes a header, a trailer or a chunk's extension of
any length, and the first two are kept until they end. Above a head and one read of the loop."""
MAX_BUFFERED_BYTES = 64 * 1024
"""Of a body that nobody reads; beyond it the engine has to wait."""

Sink = Callable[[bytes], bool]
"""Takes bytes of a body within the reader's own callback; False: no more for now."""


class Broken(Exception):
    """The connection was lost, or did not speak HTTP, before the answer's end."""


class Silent(Broken):
    """Nothing came within the deadline."""


class NoConnection(Exception):
    """None could be made: nothing was sent."""


class Answer(asyncio.Protocol):
    """One connection, and the answer that is being read from it."""

    __slots__ = (
        "_aligned", "_asked", "_barren", "_body", "_buffered", "_complete", "_failure", "_has_head",
        "_head_bytes", "_heard_at", "_loop", "_parser", "_paused", "_pool", "_reusable",
        "_silence_s", "_sink", "_sink_error", "_timer", "_transport", "_waiter", "headers",
        "idle_since", "origin", "reads", "status",
    )  # fmt: skip

    def __init__(self, pool: Pool, origin: str) -> None:
        self._pool = pool
        self.origin = origin
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._silence_s = 0.0
        self._heard_at = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None
        self._sink_error: Exception | None = None
        self._body: deque[bytes] = deque()
        self._buffered = 0
        self._barren = 0
        self._paused = False
        self._failure: Exception | None = None
        self._asked = False
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.reads = 0
        """pieces that came of it"""
        self.headers: dict[str, str] = {}
        """names in lower case; of repeated ones the last"""
        self._head_bytes = 0
        self._has_head = False
        self._aligned = False
        """what comes next is a chunk's length"""
        self._complete = False
        self._reusable = False

    # --- what a caller does ---------------------------------------------------------------------

    async def send(self, request: bytes, silence_s: float) -> None:
        """Writes a whole request; returns with the head of its answer."""
        self.ask(request, silence_s)
        await self.head()

    def ask(self, request: bytes, silence_s: float) -> None:
        """Writes a whole request."""
        if self._transport is None or self._failure is not None:
            raise Broken("the connection is closed")
        self._asked = True
        self.expect_within(silence_s)
        self._transport.write(request)

    async def head(self) -> None:
        """Until status and headers are here."""
        while not self._has_head:
            await self._more()

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def ended(self) -> bool:
        """The whole body was read."""
        return self._complete and not self._body

    @property
    def paused(self) -> bool:
        """More came than was read: the engine has to wait for us."""
        return self._paused

    def expect_within(self, silence_s: float) -> None:
        """From now on, silence this long means that the engine is lost."""
        now = self._loop.time()
        self._silence_s = silence_s
        self._heard_at = now
        if self._timer is not None:
            if self._timer.when() <= now + silence_s:
                return  # it looks again when it fires: not set anew for each answer and chunk
            self._timer.cancel()
        self._timer = self._loop.call_later(silence_s, self._look)

    async def arrival(self) -> None:
        """Until there is something of the body to read, its end, or a status that is no 200."""
        while not (self._body or self._complete or self.status not in {0, 200}):
            await self._more()

    async def part(self) -> bytes:
        """What has come of the body since the last call; empty at its end."""
        while not self._body:
            if self._complete:
                return b""
            await self._more()
        return self._take()

    async def parts(self) -> AsyncIterator[bytes]:
        while data := await self.part():
            yield data

    async def pipe(self, sink: Sink) -> bool:
        """Gives the sink each part in the turn of the loop in which it comes, without a task switch.

        True: the body has ended. False: the sink returned False; what came since is kept, and
        `part` or another `pipe` goes on. What the sink raises is raised here.
        """
        while True:
            if self._body and not sink(self._take()):
                return False
            if self._complete:
                return True
            self._sink = sink
            try:
                await self._more()
            finally:
                stopped = self._sink is None
                self._sink = None
            if self._sink_error is not None:
                self._raise_sink_error()
            if stopped:
                return False

    def close(self) -> None:
        """The answer is done with: an unread rest cuts the connection, else it is used again."""
        self._sink_error = None  # its frames hold us
        if self.ended and self._reusable and self._failure is None:
            self._asked = False
            self._begin()
            self._pool.give_back(self)
        else:
            self.drop()

    def drop(self) -> None:
        """Cuts the connection; whoever reads hears of it at once."""
        self._fail(Broken("the answer was dropped"))
        if self._transport is not None:
            self._transport.abort()

    # --- waiting --------------------------------------------------------------------------------

    def _take(self) -> bytes:
        body = self._body
        data = body.popleft() if len(body) == 1 else b"".join(body)
        body.clear()
        self._buffered = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._heard_at = self._loop.time()  # until now it was we who did not listen
            self._transport.resume_reading()
        return data

    async def _more(self) -> None:
        """Until something happened; raises once there is a failure and nothing left to read."""
        if self._failure is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
            self._pool.pour()  # whatever this answer needs now, the others' tokens go first
        if self._failure is not None and not (self._body or self._complete or self._sink_error):
            # A copy: the one that is kept would hold the frames it passes, and they hold us.
            raise type(self._failure)(*self._failure.args)

    def _raise_sink_error(self) -> NoReturn:
        """Once, and without a trace of it: its frames hold the sink, and so us."""
        error, self._sink_error = self._sink_error, None
        assert error is not None
        try:
            raise error
        finally:
            del error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, failure: Exception) -> None:
        if self._failure is None:
            self._failure = failure
            self._wake()

    def _look(self) -> None:
        """The timer: still heard of lately, or lost."""
        self._pool.pour()
        self._timer = None
        if not self._asked or self._complete or self._failure is not None:
            return
        left_s = self._heard_at + self._silence_s - self._loop.time()
        if self._paused or left_s > 0:  # a paused engine is silent because we do not read
            self._timer = self._loop.call_later(max(left_s, self._silence_s / 2), self._look)
            return
        self._fail(Silent(f"silent for {self._silence_s:g} s"))
        self.drop()

    # --- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it

    def data_received(self, data: bytes) -> None:
        """For a sink it is kept until the loop has read all sockets of this turn (`Pool.pour`)."""
        pool = self._pool
        if self._sink is None:
            pool.pour()  # nothing overtakes what came before
            self.take_in(data, self._loop.time())
            return
        if not pool.inbox:
            self._loop.call_soon(pool.pour)
        pool.inbox.append((self, data))

    def take_in(self, data: bytes, now: float) -> None:
        if self._failure is not None:
            return  # earlier in this turn: its reader has left, or is about to
        self._heard_at = now
        self.reads += 1
        sink = self._sink
        if self._aligned and sink is not None and (chunk := _only_chunk(data)) and not self._body:
            self._barren = 0  # and the parser stays where it is: between two chunks
            self._give(sink, chunk)
            return
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        if not self._asked or self._complete:
            self._reusable = False  # bytes that belong to no answer: nothing after them is trusted
            self.drop()
            return
        self._barren += len(data)
        self._aligned = False
        try:
            self._parser.feed_data(data)
            if self._barren > MAX_BARREN_BYTES:
                raise httptools.HttpParserError("a line without end")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(Broken(f"not HTTP: {type(error).__name__}"))
            self.drop()
            return
        self._aligned = self._aligned and data.endswith(b"\r\n")
        if self._sink is not None and self._body:
            self._pour(self._sink)
        elif self._waiter is not None:
            self._wake()
        elif self._buffered > MAX_BUFFERED_BYTES and not self._paused:
            assert self._transport is not None
            self._paused = True
            self._transport.pause_reading()

    def _pour(self, sink: Sink) -> None:
        body = self._body
        data = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        self._buffered = 0  # not paused: that takes a body that nobody reads
        self._give(sink, data)

    def _give(self, sink: Sink, data: bytes) -> None:
        more = sink(data)
        if not more:
            self._sink = None
        if not more or self._complete:
            self._wake()

    def sink_failed(self, error: Exception) -> None:
        self._sink, self._sink_error = None, error
        self._fail(Broken("its reader failed"))

    def eof_received(self) -> None:
        self._pool.pour()
        if self._has_head and not self._complete and self._until_close():
            self._complete = True
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.pour()
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._pool.lost(self)
        del self._parser  # it holds us, and we hold it
        what = type(exc).__name__ if exc is not None else "closed by the engine"
        self._fail(Broken(f"connection lost: {what}"))

    def _until_close(self) -> bool:
        return "content-length" not in self.headers and "transfer-encoding" not in self.headers

    # --- llhttp ---------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            self._reusable = False  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError("the head of the answer is too long")
        if not self._has_head:  # else a trailer
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self.headers = {}
            return
        if not self._has_head:
            self.status = status
            self._has_head = True

    def on_chunk_header(self) -> None:
        self._aligned = False

    def on_chunk_complete(self) -> None:
        self._aligned = True

    def on_body(self, data: bytes) -> None:
        if not self._complete:
            self._body.append(data)
            self._buffered += len(data)
            self._barren = 0

    def on_message_complete(self) -> None:
        self._aligned = False
        if self._has_head and not self._complete:
            self._complete = True
            self._reusable = self._parser.should_keep_alive()


def _only_chunk(data: bytes) -> bytes | None:
    """What a chunk holds if this is exactly one of 16 to 4,095 bytes, its length in plain hex digits.

    Nearly all are: an event of an engine is a chunk, and comes in a read of its own. None: let the
    parser look.
    """
    digits = 3 if len(data) >= 0x100 + 3 + 4 else 2
    size = len(data) - digits - 4
    if 0x10 <= size < 0x1000 and data.startswith(b"%x\r\n" % size) and data.endswith(b"\r\n"):
        return data[digits + 2 : -2]
    return None


def head(method: str, base_url: str, path: str, headers: str, length: int) -> bytes:
    """The head of a request; `headers` are whole lines."""
    host = base_url.partition("//")[2]
    return (
        f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n{headers}"
        f"Content-Length: {length}\r\n\r\n"
    ).encode("latin-1")
