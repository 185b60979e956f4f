"""Answers that outlive their client's connection: for a retry that joins, and for a resumed stream.

A request that carries `Idempotency-Key`, or asks for event ids, runs on its own and is recorded;
every client connection plays the recording, from its beginning or from an event on. All other
requests never come here: their clients' leaving ends them.

A recording is one gateway process's own. Its memory is bounded: what all of its players have is
dropped when it grows beyond its bound, and the engine is not read while a player lags that much.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.errors import Code, GatewayError
from spotinference.gateway.messages import Request
from spotinference.gateway.reply import Reply

IDEMPOTENCY_KEY = "Idempotency-Key"
EVENT_IDS = "x-spotinference-event-ids"
LAST_EVENT_ID = "Last-Event-ID"
PIECE_BYTES = 64 * 1024
JOINED = "x-spotinference-joined"
"""On an answer that another request had asked for."""
_TOKEN = re.compile(r"[\x21-\x7e]{1,255}")
_EVENT_ID = re.compile(r"([0-9a-f]{32})(?::([0-9]{1,9}))?")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request's headers say about recording."""

    idempotency: str | None = None
    ids: bool = False
    """`id:` lines, with which the stream can be resumed"""
    last: tuple[str, int] | None = None
    """request id, and number of the last event that the client has"""


def asked(http: web.BaseRequest) -> Asked | None:
    """None for nearly all requests; `invalid_request` names a header that is wrong."""
    headers = http.headers
    if (last := headers.get(LAST_EVENT_ID)) is not None:
        found = _EVENT_ID.fullmatch(last)
        if found is None:
            raise _wrong(LAST_EVENT_ID, "must be <x-request-id>:<number>, as the stream's ids are")
        return Asked(ids=True, last=(found[1], int(found[2] or 0)))
    idempotency = headers.get(IDEMPOTENCY_KEY)
    if idempotency is not None and not _TOKEN.fullmatch(idempotency):
        raise _wrong(IDEMPOTENCY_KEY, "must be 1 to 255 printable characters without spaces")
    ids = headers.get(EVENT_IDS)
    if ids is not None and ids != "true":
        raise _wrong(EVENT_IDS, "must be true, or absent")
    return Asked(idempotency, ids is not None) if idempotency or ids else None


def _wrong(header: str, wording: str) -> GatewayError:
    return GatewayError(Code.INVALID_REQUEST, f"{header}: {wording}.", param=header)


class Recording:
    """One answer as it comes; written by one exchange, read by any number of players."""

    def __init__(self, owner: str, request_id: str, digest: bytes, limit: int) -> None:
        self.owner = owner
        """id of the API key"""
        self.request_id = request_id
        self.digest = digest
        self.headers: dict[str, str] | None = None
        """set once a stream has begun"""
        self.whole: bytes | None = None
        self.refused: GatewayError | None = None
        self.last_words: bytes | None = None
        """the error event of a stream that was aborted"""
        self.over = False
        self.size = 0
        self.first = 0
        """number of the oldest write that is kept"""
        self.events_before = 0
        """events in the writes that are not kept any more"""
        self.keep_alive: tuple[float, float] | None = None
        self.players: dict[object, int] = {}
        """the next write of each"""
        self.task: asyncio.Task[None] | None = None
        self._then: asyncio.TimerHandle | None = None
        self._limit = limit
        self._writes: list[bytes] = []
        self._changed = asyncio.Event()

    def then(self, after_s: float, what: Callable[[], None] | None) -> None:
        """What becomes of it after a while, in place of what was to become of it; None: nothing.

        One timer, and none that outlives its reason: what it holds is as large as the answer.
        """
        if self._then is not None:
            self._then.cancel()
        loop = asyncio.get_running_loop()
        self._then = loop.call_later(after_s, what) if what is not None else None

    # --- written by the exchange ----------------------------------------------------------------

    def begin(self, headers: dict[str, str]) -> None:
        self.headers = headers
        self._tell()

    def wants_keep_alive(self, first_s: float, every_s: float) -> None:
        self.keep_alive = (first_s, every_s)
        self._tell()

    def append(self, data: bytes) -> bool:
        """Whole events. False: wait for `room` before the next."""
        self._writes.append(data)
        self.size += len(data)
        self._tell()
        return self.size <= self._limit or self._trimmed()

    async def room(self) -> None:
        """Until so much was played that more may be kept."""
        while not self._trimmed():
            await self._changed.wait()

    def finish(self) -> None:
        self.over = True
        self._tell()

    def _trimmed(self) -> bool:
        """Forgets what all players have, while there is too much; whether there is room now."""
        reached = min(self.players.values(), default=self.first)
        gone = 0
        while self.size > self._limit and self.first + gone < reached:
            self.size -= len(self._writes[gone])
            self.events_before += _events_in(self._writes[gone])
            gone += 1
        del self._writes[:gone]
        self.first += gone
        return self.size <= self._limit

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # --- read by players ------------------------------------------------------------------------

    def join(self, after: int) -> object:
        """A player's handle; `answer_gone` when events after that number were forgotten."""
        if self.events_before > after:
            raise gone()
        player = object()
        self.players[player] = self.first
        return player

    def leave(self, player: object) -> None:
        self.players.pop(player, None)
        self._tell()

    async def more(self, player: object) -> list[bytes]:
        """Writes that this player does not have yet, a piece of them; empty at the answer's end."""
        while True:
            at = self.players[player]
            if at < self.first + len(self._writes):
                writes = self._piece(at - self.first)
                self.players[player] = at + len(writes)
                if self.size > self._limit:
                    self._tell()  # there may be room now
                return writes
            if self.over:
                return []
            await self._changed.wait()

    def _piece(self, at: int) -> list[bytes]:
        """What one player is given at a time: with all of it each who takes nothing held a copy."""
        size, end = 0, at
        while end < len(self._writes) and (
            end == at or size + len(self._writes[end]) <= PIECE_BYTES
        ):
            size += len(self._writes[end])
            end += 1
        return self._writes[at:end]

    async def begun(self, reply: Reply) -> None:
        """Until it is known what becomes of the request; keeps the client alive meanwhile."""
        alive = False
        while self.headers is None and not self.over:
            if self.keep_alive is not None and not alive:
                alive = True
                reply.keep_alive(*self.keep_alive)
            await self._changed.wait()


class RecordedReply(Reply):
    """Takes an exchange's answer in the place of a connection."""

    def __init__(self, http: Request, settings: GatewaySettings, recording: Recording) -> None:
        super().__init__(http, settings, recording.request_id)
        self._recording = recording

    @property
    def begun(self) -> bool:
        return self._recording.headers is not None

    async def begin(self, headers: dict[str, str] | None = None, data: bytes = b"") -> None:
        own = self._http.answer_headers
        self._recording.begin({**own, **self.headers, **(headers or {})})
        if data:
            await self.write(data)

    def push(self, data: bytes) -> bool:
        return self._recording.append(data)

    async def drain(self) -> None:
        await self._recording.room()

    def keep_alive(self, first_s: float, every_s: float) -> None:
        self._recording.wants_keep_alive(first_s, every_s)

    async def still(self) -> None:
        return

    async def write(self, data: bytes) -> None:
        if not self.begun:
            await self.begin()
        if not self._recording.append(data):
            await self._recording.room()

    async def last(self, data: bytes) -> None:
        await self.write(data)

    async def finish(self) -> web.StreamResponse:
        self._recording.finish()
        return web.StreamResponse()

    async def send(self, body: bytes) -> web.StreamResponse:
        self._recording.whole = body
        self._recording.size = len(body)
        await self.begin()
        self._recording.finish()
        return web.StreamResponse()

    async def abort(self, error: GatewayError) -> web.StreamResponse:
        self.aborted = True
        self._recording.last_words = self.as_event(error)
        self._recording.refused = error
        self._recording.finish()
        return web.StreamResponse()


async def play(recording: Recording, reply: Reply, wanted: Asked) -> web.StreamResponse:
    """Gives one connection the answer, as if it had asked for it alone."""
    after = wanted.last[1] if wanted.last is not None else 0
    player = recording.join(after)
    try:
        try:
            await recording.begun(reply)
        finally:
            await reply.still()
        if recording.headers is None:
            assert recording.refused is not None
            if not reply.begun:
                raise recording.refused
            return await reply.abort(recording.refused)
        reply.headers = {**recording.headers, **reply.headers}
        if (whole := recording.whole) is not None:
            reply.headers["x-request-id"] = recording.request_id
            return await reply.send(whole)
        return await _play_stream(recording, reply, player, after, ids=wanted.ids)
    finally:
        recording.leave(player)


async def _play_stream(
    recording: Recording, reply: Reply, player: object, after: int, *, ids: bool
) -> web.StreamResponse:
    await reply.begin()
    number = recording.events_before
    while writes := await recording.more(player):
        out = b"".join(writes)
        if ids:
            out, number = _numbered(out, recording.request_id, number, after)
        if out:
            await reply.write(out)
    if (last := recording.last_words) is not None:
        assert recording.refused is not None
        reply.as_event = lambda _: last
        return await reply.abort(recording.refused)
    return await reply.finish()


def _numbered(raw: bytes, request_id: str, number: int, after: int) -> tuple[bytes, int]:
    """The events after `after` with `id:` lines, and the number of the last event."""
    out: list[bytes] = []
    for block in raw.split(b"\n\n"):
        if not block:
            continue
        if block.startswith(b":"):
            if number >= after:
                out.append(block)
            continue
        number += 1
        if number > after:
            out.append(b"id: %b:%d\n%b" % (request_id.encode(), number, block))
    return b"".join(block + b"\n\n" for block in out), number


def _events_in(raw: bytes) -> int:
    return sum(1 for block in raw.split(b"\n\n") if block and not block.startswith(b":"))


def gone() -> GatewayError:
    return GatewayError(
        Code.ANSWER_GONE,
        "There is no such answer of this key here any more, or its beginning was too long to keep. "
        "Ask anew.",
    )
