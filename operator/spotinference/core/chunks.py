"""The chunks of vLLM's chat and completion streams on the wire: read, hidden, written.

Everything that knows a chunk's field names is here. Written chunks have the engine's own key
order and compact form, so that a continued stream looks like an undisturbed one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

import orjson

from spotinference.api.kinds import Json

DONE = b"data: [DONE]\n\n"
DONE_DATA = b"[DONE]"
NO_CHOICES = b'"choices":[]'
"""In a chunk of vLLM's that reports usage; within a JSON string the quotes would be escaped."""

_IDS = re.compile(rb'"((?:prompt_)?token_ids)"\s*:\s*\[[^\]]*\]')
_ANY_IDS = b'token_ids":['
_FINISH_KEY = b'"finish_reason"'
_IDS_KEY = b'"token_ids":['
_CR = 13
"""A number is found at a fifth of the cost of a byte string."""
_TROUBLE = re.compile(rb'data: ?\{\s*"error"|"finish_reason"\s*:\s*"(?:abort|error)"')


class Endpoint(StrEnum):
    """The paths that ask an engine for something; all other paths never reach one."""

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"
    RESPONSES = "/v1/responses"
    EMBEDDINGS = "/v1/embeddings"
    RERANK = "/v1/rerank"
    SCORE = "/v1/score"
    TOKENIZE = "/tokenize"
    DETOKENIZE = "/detokenize"

    @property
    def chunked(self) -> bool:
        """Its streams are chunks with choices, the only kind that this module writes."""
        return self is Endpoint.CHAT or self is Endpoint.COMPLETION

    @property
    def completes(self) -> bool:
        """It generates tokens."""
        return self.chunked or self is Endpoint.RESPONSES

    @property
    def object(self) -> str:
        return "chat.completion.chunk" if self is Endpoint.CHAT else "text_completion"

    @property
    def id_prefix(self) -> str:
        return "chatcmpl-" if self is Endpoint.CHAT else "cmpl-"


@dataclass(frozen=True, slots=True)
class Identity:
    """What is the same in all chunks of one answer."""

    id: str
    created: int
    model: str


def hide_token_ids(raw: bytes) -> bytes:
    """The events as they would be had nobody asked for token ids: `null`, as vLLM writes it.

    Inside a JSON string each quote is escaped, so the pattern can only match a real key.
    """
    at = raw.rfind(_IDS_KEY)
    if at >= 0:
        end = raw.find(b"]", at)
        if raw.rfind(b'token_ids"', 0, at) < 0 and raw.find(b'token_ids"', end) < 0:
            # One chunk of one choice: nearly all.
            return b"".join((raw[: at + len(_IDS_KEY) - 1], b"null", raw[end + 1 :]))
    if (keys := raw.count(b'token_ids"')) == 0:
        return raw
    if keys == raw.count(_ANY_IDS) + raw.count(b'token_ids":null'):  # compact, as vLLM's are
        return _hide_compact(raw)
    return _IDS.sub(rb'"\1":null', raw)


def _hide_compact(raw: bytes) -> bytes:
    """As the pattern does it, in a fifth of its time: several chunks came in one read."""
    parts: list[bytes] = []
    kept = 0
    at = raw.find(_ANY_IDS)
    while at >= 0:
        opened, end = at + len(_ANY_IDS) - 1, raw.find(b"]", at) + 1
        if end and (raw.endswith(b'"', 0, at) or raw.endswith(b'"prompt_', 0, at)):
            parts += raw[kept:opened], b"null"
            kept = end
        at = raw.find(_ANY_IDS, opened)
    parts.append(raw[kept:])
    return b"".join(parts)


def sound(raw: bytes) -> bool:
    """Whether these events look like chunks of a good answer, without parsing them.

    False means: look closer. It may be a keep-alive, an error of the engine, or no JSON at all.
    """
    if not (raw.startswith(b"data: {") and raw.endswith(b"}\n\n")):
        return False
    if raw.find(b"\n\n") != len(raw) - 2 and (raw.count(b"\n\n") != raw.count(b"}\n\ndata: {") + 1):
        return False
    if not raw.isascii() and not _utf8(raw):
        return False
    return (b'"error"' not in raw and b'"abort"' not in raw) or _TROUBLE.search(raw) is None


def ordinary(raw: bytes) -> bool:
    """Whether these events may go to the client as they are, unparsed: sound, and all with choices.

    Searched for in a chunk of 250 bytes a short pattern takes half a microsecond, a long one from the
    end a tenth: so the chunk that nearly all are is told by what it has, not by what it has not.
    """
    return lone(raw) or (sound(raw) and NO_CHOICES not in raw)


def lone(raw: bytes) -> bool:
    """Whether these bytes are one whole event, and an ordinary one: a chunk with a choice whose only
    finish_reason is null, so no error and no abort. Nearly all are.
    """
    return (
        raw.startswith(b'data: {"id":')
        and raw.endswith(b"}\n\n")
        and raw.find(b"\n") == len(raw) - 2
        and _CR not in raw
        and raw.isascii()
        and (at := raw.rfind(_FINISH_KEY)) > 0
        and raw.startswith(b":null", at + len(_FINISH_KEY))
        and raw.rfind(_FINISH_KEY, 0, at) < 0
    )


def _utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def decode(data: bytes) -> Json | None:
    """The chunk in an event's data; None when it is not a JSON object."""
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return chunk if isinstance(chunk, dict) else None


def encode(chunk: Json) -> bytes:
    return event(orjson.dumps(chunk))


def event(data: bytes) -> bytes:
    """An event of one line: in JSON a line break can only be a space."""
    return b"data: " + data.replace(b"\n", b" ") + b"\n\n"


def identity(chunk: Json) -> Identity | None:
    try:
        return Identity(str(chunk["id"]), int(chunk["created"]), str(chunk["model"]))
    except (KeyError, TypeError, ValueError):
        return None


def error_of(chunk: Json) -> Json | None:
    """The engine's error when this chunk is one."""
    error = chunk.get("error")
    return error if isinstance(error, dict) else None


def prompt_token_ids(chunk: Json) -> list[int] | None:
    """Ids of the prompt: at the top in chat, in the choice for completions."""
    ids = chunk.get("prompt_token_ids")
    if ids is None and chunk.get("choices"):
        ids = chunk["choices"][0].get("prompt_token_ids")
    return ids if isinstance(ids, list) else None


def role(choice: Json) -> str | None:
    """Of a chat chunk that begins its message: whose it is."""
    named = (choice.get("delta") or {}).get("role")
    return None if named is None else str(named)


def opens(choice: Json) -> bool:
    """A chat chunk that begins the message by its role."""
    return "role" in (choice.get("delta") or {})


def text_choice(
    endpoint: Endpoint, source: Json, *, text: str, token_ids: tuple[int, ...] | None
) -> Json:
    """A choice of plain text in the endpoint's form, the rest taken from `source`."""
    finish = source.get("finish_reason")
    ids = list(token_ids) if token_ids is not None else None
    choice: Json = {"index": 0}
    if endpoint is Endpoint.CHAT:
        choice |= {"delta": {"content": text}, "logprobs": None, "finish_reason": finish}
        if finish is not None:
            choice["stop_reason"] = source.get("stop_reason")
        return choice | {"token_ids": ids}
    return choice | {
        "text": text,
        "logprobs": None,
        "finish_reason": finish,
        "stop_reason": source.get("stop_reason"),
        "prompt_token_ids": None,
        "token_ids": ids,
    }


def envelope(endpoint: Endpoint, who: Identity, choices: list[Json], source: Json) -> Json:
    """A chunk of this answer around `choices`; further top-level fields come from `source`."""
    chunk: Json = {
        "id": who.id,
        "object": endpoint.object,
        "created": who.created,
        "model": who.model,
        "choices": choices,
    }
    for key in ("usage", "system_fingerprint", "metrics"):
        if source.get(key) is not None:
            chunk[key] = source[key]
    return chunk


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


def shifted_usage(before: Json, tokens: int) -> Json:
    """Usage of a continuation as usage of the whole: `tokens` of its prompt were generated."""
    prompt_tokens = max(0, _count(before.get("prompt_tokens")) - tokens)
    after = before | {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": _count(before.get("completion_tokens")) + tokens,
    }
    details = before.get("prompt_tokens_details")
    if isinstance(details, dict) and _count(details.get("cached_tokens")) > prompt_tokens:
        # The rest was of the answer.
        after["prompt_tokens_details"] = details | {"cached_tokens": prompt_tokens}
    return after


def _count(told: object) -> int:
    """An engine may tell anything."""
    return told if isinstance(told, int) else 0


def empty_chunk(endpoint: Endpoint, who: Identity) -> bytes:
    """A chunk without choices: nothing to show, but clients that time out on parsed chunks live."""
    return encode(envelope(endpoint, who, [], {}))


def error_event(message: str, *, kind: str, code: str, status: int) -> bytes:
    """The event that ends a stream which cannot be ended well; never followed by [DONE]."""
    error = {"message": message, "type": kind, "param": None, "code": code, "status": status}
    return encode({"error": error})


def comment(text: str) -> bytes:
    return b": " + text.encode() + b"\n\n"
