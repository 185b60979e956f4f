"""The gateway's connections to engines: those that are idle, and the bytes that come over all of them.

`engine_http` is what one connection does.
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from spotinference.clients.engine_http import Answer, NoConnection, head

SWEEP_S = 1.0


class Pool:
    """Idle connections by origin; bounded in number, and in how long one may be idle."""

    def __init__(self, *, limit: int, keepalive_s: float) -> None:
        self._limit = limit
        self._keepalive_s = keepalive_s
        self._idle: dict[str, list[Answer]] = {}
        self._all: set[Answer] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self.inbox: list[tuple[Answer, bytes]] = []
        """what came in this turn of the loop for sinks: `pour` gives it to them in the same turn"""
        self.poured = 0
        """how much that was in the last turn that had any"""

    def pour(self) -> None:
        """Gives what came to the answers, in its order.

        One read after another and then one sink after another: read, passed on, read, passed on,
        each finds the processor's caches full of the other's code (decision 0021).
        """
        if not self.inbox:
            return
        inbox, self.inbox = self.inbox, []
        self.poured = len(inbox)
        now = asyncio.get_running_loop().time()
        for answer, data in inbox:
            try:
                answer.take_in(data, now)
            except Exception as error:  # noqa: BLE001 - raised where the sink was given
                answer.sink_failed(error)

    async def request(
        self,
        method: str,
        base_url: str,
        path: str,
        body: bytes = b"",
        headers: str = "",
        *,
        connect_timeout_s: float,
        silence_s: float,
    ) -> Answer:
        """An answer with its head read. `headers` are whole lines, each with its CRLF.

        `NoConnection` before anything was sent, else `Broken`. The caller closes the answer.
        """
        answer = await self.connection(base_url, connect_timeout_s)
        try:
            await answer.send(head(method, base_url, path, headers, len(body)) + body, silence_s)
        except BaseException:
            answer.drop()
            raise
        return answer

    async def connection(self, base_url: str, connect_timeout_s: float) -> Answer:
        """An idle one, the latest used first; else a new one."""
        if (answer := self.idle(base_url)) is not None:
            return answer
        if len(self._all) >= self._limit:
            raise NoConnection(f"{self._limit} connections to engines are open already")
        loop = asyncio.get_running_loop()
        url = urlsplit(base_url)
        if url.hostname is None or url.port is None:
            raise NoConnection(f"{base_url}: not http://ADDRESS:PORT")
        try:
            async with asyncio.timeout(connect_timeout_s):
                _, answer = await loop.create_connection(
                    lambda: Answer(self, base_url), url.hostname, url.port
                )
        except TimeoutError as error:
            raise NoConnection(f"{base_url}: no connection in {connect_timeout_s:g} s") from error
        except OSError as error:
            raise NoConnection(f"{base_url}: {error}") from error
        self._all.add(answer)
        return answer

    def idle(self, base_url: str) -> Answer | None:
        waiting = self._idle.get(base_url)
        latest = asyncio.get_running_loop().time() - self._keepalive_s
        while waiting:
            answer = waiting.pop()
            if not waiting:
                del self._idle[base_url]
            if answer.idle_since >= latest and answer in self._all:
                return answer
            answer.drop()
        return None

    def give_back(self, answer: Answer) -> None:
        loop = asyncio.get_running_loop()
        answer.idle_since = loop.time()
        self._idle.setdefault(answer.origin, []).append(answer)
        if self._sweep is None:
            self._sweep = loop.call_later(SWEEP_S, self._close_old)

    def lost(self, answer: Answer) -> None:
        self._all.discard(answer)
        waiting = self._idle.get(answer.origin)
        if waiting is not None and answer in waiting:
            waiting.remove(answer)
            if not waiting:
                del self._idle[answer.origin]

    def _close_old(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = None
        latest = loop.time() - self._keepalive_s
        for waiting in list(self._idle.values()):
            for answer in [a for a in waiting if a.idle_since < latest]:
                answer.drop()
        if self._idle:
            self._sweep = loop.call_later(SWEEP_S, self._close_old)

    async def aclose(self) -> None:
        """Cuts all connections."""
        if self._sweep is not None:
            self._sweep.cancel()
        for answer in list(self._all):
            answer.drop()
