"""The seam of a continued answer: chunks of the new replica become chunks of the old answer.

First what the client already has comes again (`Next.expect_ids`): it is compared, token by token
and as text, and dropped. Then every chunk goes out under the answer's own id, created and model,
in the client's protocol, with usage counted over the whole.
"""

from __future__ import annotations

from spotinference.api.kinds import Json
from spotinference.core import chunks
from spotinference.core.chunks import Endpoint, Identity
from spotinference.core.continuation import Next, Prepared
from spotinference.core.delivered import Delivered


class Diverged(Exception):
    """The new replica does not repeat what the client already has: nothing may be appended."""


class EngineFailed(Exception):
    """The engine itself ended the answer with an error, or aborted it."""

    def __init__(self, error: Json) -> None:
        super().__init__(str(error.get("message") or "the engine aborted the answer")[:500])
        self.error = error


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
        self._expect_ids = request.expect_ids if request else ()
        self._expect_text = request.expect_text if request else ""
        self._base_tokens = request.base_tokens if request else 0
        # What comes from the completions endpoint is mapped to the client's; the rest is as it is.
        self._source = (
            Endpoint.COMPLETION
            if request and request.path == Endpoint.COMPLETION.value
            else prepared.endpoint
        )
        self._seen = 0
        self._text = ""
        self._verified = not self._expect_ids
        self._who = delivered.identity or who

    @property
    def verified(self) -> bool:
        """Everything the client has came again; from here on it is new."""
        return self._verified

    def feed(self, data: bytes) -> bytes:
        if data == chunks.DONE_DATA:
            if not self._delivered.finished(self._prepared.choices):
                raise EngineFailed({"message": "[DONE] without a finish_reason"})
            self._delivered.done = True
            return chunks.DONE
        chunk = chunks.decode(data)
        if chunk is None:
            raise EngineFailed({"message": "a chunk that is not JSON"})
        if (error := chunks.error_of(chunk)) is not None:
            raise EngineFailed(error)
        choices = chunk.get("choices") or []
        if any(choice.get("finish_reason") in {"abort", "error"} for choice in choices):
            raise EngineFailed({})
        if not choices:
            return self._tail(chunk)
        kept = [out for choice in choices if (out := self._choice(choice)) is not None]
        return self._send(chunk, kept) if kept else b""

    def _choice(self, choice: Json) -> Json | None:
        piece = chunks.piece(self._source, choice)
        if piece.role and int(choice.get("index") or 0) in self._delivered.roles:
            return None
        if not self._verified:
            return self._verify(choice, piece)
        if self._source is not self._prepared.endpoint:
            return chunks.text_choice(
                self._prepared.endpoint, choice, text=piece.text, token_ids=piece.token_ids
            )
        return choice

    def _verify(self, choice: Json, piece: chunks.Piece) -> Json | None:
        left = self._expect_ids[self._seen :]
        again = piece.token_ids[: len(left)]
        if again != left[: len(again)]:
            raise Diverged(f"another token at position {self._base_tokens + self._seen}")
        self._seen += len(again)
        self._text += piece.text
        if self._seen < len(self._expect_ids):
            if piece.finish_reason is not None:
                raise Diverged("the replay ended before the answer's last delivered token")
            return None
        if not self._text.startswith(self._expect_text):
            raise Diverged("the same tokens gave another text")
        self._verified = True
        text = self._text[len(self._expect_text) :]
        fresh = piece.token_ids[len(again) :]
        if not text and not fresh and piece.finish_reason is None:
            return None
        if not piece.plain:
            raise Diverged("a chunk that is not plain text straddles the cut")
        return chunks.text_choice(self._prepared.endpoint, choice, text=text, token_ids=fresh)

    def _tail(self, chunk: Json) -> bytes:
        """A chunk without choices: usage, or a keep-alive."""
        if not self._verified:
            raise Diverged("the replay ended before the answer's last delivered token")
        return self._send(chunk, [])

    def _send(self, chunk: Json, choices: list[Json]) -> bytes:
        self._who = self._who or chunks.identity(chunk)
        if self._who is None:
            raise EngineFailed({"message": "a chunk without id, created and model"})
        out = chunks.envelope(self._prepared.endpoint, self._who, choices, chunk)
        if out.get("usage") is not None:
            out["usage"] = chunks.shifted_usage(out["usage"], self._base_tokens)
        if (ids := chunk.get("prompt_token_ids")) is not None:
            out["prompt_token_ids"] = ids
        self._delivered.absorb(out)
        raw = chunks.encode(out)
        return chunks.hide_token_ids(raw) if self._prepared.hide_token_ids else raw
