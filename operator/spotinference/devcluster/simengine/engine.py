"""Admission, queue and batch steps: the load model.

One task steps all running sequences, as vLLM's engine core does; waiting ones enter in order of
arrival when a slot is free. Handlers read what their request produced since they last looked, so a
slow client gets several tokens in one chunk and never slows the batch.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from spotinference.devcluster.simengine import tokenizer
from spotinference.devcluster.simengine.language import Recital, Speaker
from spotinference.devcluster.simengine.options import SimOptions
from spotinference.devcluster.simengine.protocol import Generation, queue_full


@dataclass(slots=True)
class Output:
    """What one sequence produced since the last look."""

    index: int
    token_ids: list[int]
    text: str
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Aborted(Exception):
    """The engine stopped under the request."""


@dataclass(slots=True)
class Counters:
    """Cumulative numbers behind the metrics."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("stop", "length", "abort", "error", "repetition"), 0)
    )
    rejected: int = 0
    first_token_s: list[float] = field(default_factory=lambda: [0.0, 0.0])
    inter_token_s: list[float] = field(default_factory=lambda: [0.0, 0.0])
    end_to_end_s: list[float] = field(default_factory=lambda: [0.0, 0.0])
    queue_s: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Pairs of (count, sum): enough for every histogram's tail."""


class _StopText:
    """Holds back what may be the start of a stop string; finds it when it is complete."""

    __slots__ = ("_hold", "_include", "_stops", "_tail")

    def __init__(self, stops: tuple[str, ...], *, include: bool) -> None:
        self._stops = stops
        self._include = include
        self._hold = 0 if include else max(len(stop) for stop in stops) - 1
        self._tail = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Text that may go out, and the stop string when one was found."""
        self._tail += text
        found = [(self._tail.find(s), s) for s in self._stops if s in self._tail]
        if found:
            at, stop = min(found)
            return self._tail[: at + len(stop) if self._include else at], stop
        cut = len(self._tail) - self._hold
        if self._include:
            out, keep = text, max(len(stop) for stop in self._stops) - 1
            self._tail = self._tail[-keep:] if keep else ""
            return out, None
        out, self._tail = (self._tail[:cut], self._tail[cut:]) if cut > 0 else ("", self._tail)
        return out, None

    def rest(self) -> str:
        return "" if self._include else self._tail


class Sequence:
    """One sequence of one request, from the queue to its finish."""

    __slots__ = (
        "_detokenizer",
        "_generation",
        "_speaker",
        "_stop_text",
        "admitted_at",
        "arrived_at",
        "finished",
        "index",
        "made",
        "prompt_tokens",
        "ready_at",
        "request",
    )

    def __init__(
        self, request: Request, index: int, prompt: tuple[int, ...], sub: int, eos_mean: int
    ) -> None:
        generation = request.generation
        self.request = request
        self.index = index
        self.prompt_tokens = len(prompt)
        self.arrived_at = time.monotonic()
        self.admitted_at = 0.0
        self.ready_at = 0.0
        self.made = 0
        self.finished = False
        self._generation = generation
        self._speaker: Speaker | Recital
        if generation.forced is not None:
            self._speaker = Recital(generation.forced.tokens())
        else:
            self._speaker = Speaker(
                prompt,
                seed=generation.seed_of(sub),
                output_only=generation.output_only,
                eos_mean=eos_mean,
            )
        self._detokenizer = tokenizer.Detokenizer(prompt)
        self._stop_text = (
            _StopText(generation.stop, include=generation.include_stop) if generation.stop else None
        )

    def step(self) -> Output:
        """The next token and what it adds to the text."""
        want = self._generation
        early = self.made < want.min_tokens
        token = self._speaker.next_token(may_end=not (want.ignore_eos or early))
        self.made += 1
        finish: str | None = None
        reason: str | int | None = None
        text = self._detokenizer.feed(token)
        if token == tokenizer.END:
            finish = "stop"
        elif token in want.stop_token_ids and not early:
            finish, reason, text = "stop", token, ""
        if self._stop_text is not None:
            text, stop = self._stop_text.feed(text)
            if stop is not None and not early and finish is None:
                finish, reason = "stop", stop
        if finish is None and self.made >= want.max_tokens:
            finish = "length"
        if finish is not None:
            self.finished = True
            if self._stop_text is not None and reason is None:
                text += self._stop_text.rest()
        return Output(self.index, [token], text, finish, reason)


class Request:
    """All sequences of one HTTP request, and the outputs its handler has not read yet."""

    __slots__ = ("_aborted", "_pending", "_waiter", "generation", "sequences", "unfinished")

    def __init__(self, generation: Generation, eos_mean: int) -> None:
        self.generation = generation
        self._pending: list[Output] = []
        self._waiter: asyncio.Future[None] | None = None
        self._aborted = False
        self.sequences = [
            Sequence(self, p * generation.n + i, prompt, i, eos_mean)
            for p, prompt in enumerate(generation.prompts)
            for i in range(generation.n)
        ]
        self.unfinished = len(self.sequences)

    def push(self, output: Output) -> None:
        if self._pending:
            for known in self._pending:
                if known.index == output.index:
                    known.token_ids += output.token_ids
                    known.text += output.text
                    known.finish_reason = output.finish_reason
                    known.stop_reason = output.stop_reason
                    return
        self._pending.append(output)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def abort(self) -> None:
        self._aborted = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def outputs(self) -> list[Output]:
        """What was produced since the last call, at least one; Aborted when nothing will come."""
        if not self._pending:
            if self._aborted:
                raise Aborted
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
            if not self._pending:
                raise Aborted
        taken, self._pending = self._pending, []
        return taken


class Engine:
    """The batch. `submit` and `cancel` are called by handlers, `run` by the server."""

    def __init__(self, options: SimOptions) -> None:
        self.options = options
        self.counters = Counters()
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self._work = asyncio.Event()

    @property
    def unfinished(self) -> int:
        return len(self.running) + len(self.waiting)

    def submit(self, generation: Generation) -> Request:
        """Queues the request; Refused with 503 when the queue is full, as vLLM does."""
        count = generation.n * len(generation.prompts)
        limit = self.options.max_num_queued_reqs
        if limit is not None and self.unfinished + count > limit:
            self.counters.rejected += 1
            raise queue_full()
        request = Request(generation, self.options.eos_mean_tokens)
        self.waiting.extend(request.sequences)
        self._work.set()
        return request

    def cancel(self, request: Request) -> None:
        """Frees the request's slots; harmless when it has finished. vLLM does not count it either."""
        if not request.unfinished:
            return
        gone = [s for s in request.sequences if not s.finished]
        for sequence in gone:
            sequence.finished = True
        request.unfinished = 0
        self.running = [s for s in self.running if not s.finished]
        self.waiting = deque(s for s in self.waiting if not s.finished)

    def refuse(self, request: Request) -> None:
        """Ends a request that came while draining: no tokens, finish_reason "abort"."""
        self.cancel(request)
        for sequence in request.sequences:
            request.push(Output(sequence.index, [], "", "abort"))

    def abort_all(self) -> None:
        """Every handler gets `Aborted`."""
        for request in {s.request for s in (*self.running, *self.waiting)}:
            self.cancel(request)
            request.abort()

    async def run(self) -> None:
        """Steps the batch for ever; one sleep per step, none when idle."""
        options = self.options
        token_s = 1 / options.tokens_per_s if options.tokens_per_s > 0 else 0.0
        next_at = 0.0
        while True:
            if not self.unfinished:
                self._work.clear()
                await self._work.wait()
                next_at = 0.0
            self._admit()
            pause = token_s + options.step_per_seq_s * len(self.running)
            now = time.monotonic()
            # A step that came late is not caught up with: a busy machine is a slow engine.
            next_at = max(next_at + pause, now)
            await asyncio.sleep(next_at - now)
            self._step(time.monotonic())

    def _admit(self) -> None:
        now = time.monotonic()
        speed = self.options.prefill_tokens_per_s
        while self.waiting and len(self.running) < self.options.max_num_seqs:
            sequence = self.waiting.popleft()
            sequence.admitted_at = now
            sequence.ready_at = now + (sequence.prompt_tokens / speed if speed > 0 else 0.0)
            self.counters.prompt_tokens += sequence.prompt_tokens
            _observe(self.counters.queue_s, now - sequence.arrived_at)
            self.running.append(sequence)

    def _step(self, now: float) -> None:
        ended = False
        for sequence in self.running:
            if sequence.finished or sequence.ready_at > now:
                continue
            output = sequence.step()
            self.counters.generation_tokens += 1
            if sequence.made == 1:
                _observe(self.counters.first_token_s, now - sequence.arrived_at)
            if output.finish_reason is not None:
                ended = True
                sequence.request.unfinished -= 1
                self.counters.finished[output.finish_reason] += 1
                _observe(self.counters.end_to_end_s, now - sequence.arrived_at)
                if sequence.made > 1:
                    decode_s = now - sequence.ready_at
                    self.counters.inter_token_s[0] += sequence.made - 1
                    self.counters.inter_token_s[1] += decode_s
            sequence.request.push(output)
        if ended:
            self.running = [s for s in self.running if not s.finished]


def _observe(pair: list[float], value: float) -> None:
    pair[0] += 1
    pair[1] += value
