"""The seam of a continued answer: chunks of the new replica become chunks of the old answer.

First what the client already has comes again (`Next.expect`): it is compared channel by channel
and dropped. Then every chunk goes out under the answer's own id, created and model, in the
client's protocol, with usage counted over the whole.
"""

from __future__ import annotations

from collections.abc import Mapping

from spotinference.api.kinds import Json
from spotinference.core import chunks, deltas
from spotinference.core.chunks import Endpoint, Identity
from spotinference.core.continuation import Next, Prepared
from spotinference.core.delivered import Delivered
from spotinference.core.deltas import IDS, Channel, Part


class Diverged(Exception):
    """The new replica does not repeat what the client already has: nothing may be appended."""


class EngineFailed(Exception):
    """The engine itself ended the answer with an error, or aborted it.

    Its words are in `error` only: they may quote the prompt, and this one's text is logged.
    """

    def __init__(self, error: Json, why: str | None = None) -> None:
        kind = error.get("type")
        named = f" ({kind[:60]})" if isinstance(kind, str) and kind[:60].isidentifier() else ""
        super().__init__(why or f"the engine ended the answer with an error{named}")
        self.error = error

    @property
    def client_error(self) -> bool:
        """It says that the request was wrong."""
        code = self.error.get("code")
        return isinstance(code, int) and 400 <= code < 500


class Repetition:
    """What of one choice must come again, and how much of it has."""

    def __init__(self, expect: Mapping[Channel, Part]) -> None:
        self._expect = expect
        self._seen = dict.fromkeys(expect, 0)
        self._open = len(expect)

    @property
    def over(self) -> bool:
        """All of it came: what follows is new."""
        return self._open == 0

    def take(self, found: Mapping[Channel, Part]) -> dict[Channel, int]:
        """How much at the beginning of each channel is a repetition; `Diverged` if it is none."""
        cut: dict[Channel, int] = {}
        for channel, part in found.items():
            if channel not in self._expect:
                continue
            had, seen = self._expect[channel], self._seen[channel]
            again = min(len(part), len(had) - seen)
            if not again:
                continue
            if part[:again] != had[seen : seen + again]:
                what = "token" if channel == IDS else " ".join(map(str, channel))
                raise Diverged(f"another {what} at position {seen}")
            cut[channel] = again
            self._seen[channel] = seen + again
            if seen + again == len(had):
                self._open -= 1
        return cut


class Splice:
    """Feeds on the data of one event of the new replica; returns the events for the client."""

    def __init__(
        self,
        prepared: Prepared,
        delivered: Delivered,
        request: Next | None,
        who: Identity | None = None,
    ) -> None:
        """`request` None: a first attempt whose chunks must carry `who` (already announced)."""
        self._prepared = prepared
        self._delivered = delivered
        expect = request.expect if request else {}
        self._repetitions = {index: Repetition(parts) for index, parts in expect.items()}
        self._ended = {i: c.finish_reason for i, c in delivered.choices.items() if c.finish_reason}
        """choices whose end the client has"""
        self._base_tokens = request.base_tokens if request else 0
        # What comes from the completions endpoint is mapped to the client's; the rest is as it is.
        self._source = (
            Endpoint.COMPLETION
            if request and request.path == Endpoint.COMPLETION.value
            else prepared.endpoint
        )
        self._mapped = self._source is not prepared.endpoint
        self._who = delivered.identity or who

    @property
    def verified(self) -> bool:
        """Everything the client has came again; from here on it is new."""
        return all(repetition.over for repetition in self._repetitions.values())

    def feed(self, data: bytes) -> bytes:
        if data == chunks.DONE_DATA:
            if not self._delivered.finished(self._prepared.choices):
                raise EngineFailed({}, "[DONE] without a finish_reason")
            self._delivered.done = True
            return chunks.DONE
        chunk = chunks.decode(data)
        if chunk is None:
            raise EngineFailed({}, "a chunk that is not JSON")
        if (error := chunks.error_of(chunk)) is not None:
            raise EngineFailed(error)
        choices = chunk.get("choices") or []
        if any(choice.get("finish_reason") in {"abort", "error"} for choice in choices):
            raise EngineFailed({})
        if not choices:
            return self._tail(chunk)
        if self._base_tokens == 0:
            self._same_prompt(chunk)
        kept = [out for choice in choices if (out := self._choice(choice)) is not None]
        return self._send(chunk, kept) if kept else b""

    def _same_prompt(self, chunk: Json) -> None:
        """Other ids of the same prompt: another tokenizer or chat template answers here."""
        ids, had = chunks.prompt_token_ids(chunk), self._delivered.prompt_ids
        if ids is None or had is None or self._prepared.prompts > 1:
            return
        if len(ids) != len(had) or ids != had.tolist():
            raise Diverged("the prompt has other tokens (another tokenizer or chat template)")

    def _choice(self, choice: Json) -> Json | None:
        """The choice as the client gets it; None when it has all of it."""
        index = int(choice.get("index") or 0)
        had = self._delivered.choices.get(index)
        known_role = had is not None and had.role is not None
        found = deltas.parts(self._source, choice)
        finish = choice.get("finish_reason")
        repetition = self._repetitions.get(index)
        cut: dict[Channel, int] = {}
        if repetition is not None and not repetition.over:
            cut = repetition.take(found)
        if finish is not None and repetition is not None and not repetition.over:
            raise Diverged("the replay ended before the answer's last delivered token")
        if index in self._ended:
            self._end_again(index, found, cut, finish)
            return None
        fresh = any(len(part) > cut.get(channel, 0) for channel, part in found.items())
        opening = chunks.opens(choice) and not known_role
        if not fresh and finish is None and not opening and (cut or self._skippable(repetition)):
            return None
        if cut:
            choice = deltas.without(self._source, choice, cut)
        if known_role and chunks.opens(choice):
            delta = {key: value for key, value in choice["delta"].items() if key != "role"}
            choice = choice | {"delta": delta}
            if finish is None and not fresh:
                return None
        if self._mapped:
            ids = tuple(choice.get("token_ids") or ())
            text = choice.get("text") or ""
            return chunks.text_choice(self._prepared.endpoint, choice, text=text, token_ids=ids)
        return choice

    def _skippable(self, repetition: Repetition | None) -> bool:
        """An empty chunk within what comes again is part of it."""
        return repetition is not None and not repetition.over

    def _end_again(
        self, index: int, found: Mapping[Channel, Part], cut: Mapping[Channel, int], finish: object
    ) -> None:
        """A choice that had ended must end the same way, and bring nothing new."""
        if any(len(part) > cut.get(channel, 0) for channel, part in found.items()):
            raise Diverged(f"choice {index} goes on where it had ended")
        if finish is not None and finish != self._ended[index]:
            raise Diverged(f"choice {index} ended for another reason")

    def _tail(self, chunk: Json) -> bytes:
        """A chunk without choices: usage, or a keep-alive."""
        if not self.verified:
            raise Diverged("the replay ended before the answer's last delivered token")
        return self._send(chunk, [])

    def _send(self, chunk: Json, choices: list[Json]) -> bytes:
        self._who = self._who or chunks.identity(chunk)
        if self._who is None:
            raise EngineFailed({}, "a chunk without id, created and model")
        out = chunks.envelope(self._prepared.endpoint, self._who, choices, chunk)
        if out.get("usage") is not None:
            out["usage"] = chunks.shifted_usage(out["usage"], self._base_tokens)
        if not self._mapped:
            out |= {key: value for key, value in chunk.items() if key not in out}
        self._delivered.absorb(out)
        if not choices and not self._prepared.include_usage:
            return b""
        raw = chunks.encode(out)
        return chunks.hide_token_ids(raw) if self._prepared.hide_token_ids else raw
