"""Embeddings, scores and ranks of an engine that was started to pool (`--runner pooling`).

A vector is made of the text's words, so that equal texts have equal vectors and texts that share
words are near each other.
"""

from __future__ import annotations

import base64
import math
import secrets
import struct
import time
from collections.abc import Mapping, Sequence

import orjson

from spotinference.devcluster.simengine import protocol, tokenizer
from spotinference.devcluster.simengine.options import SimOptions
from spotinference.devcluster.simengine.protocol import Json

DIMENSIONS = 64

Tokens = Sequence[int]


def embeddings(body: Mapping[str, object], options: SimOptions) -> bytes:
    """The body of POST /v1/embeddings; Refused as vLLM refuses."""
    protocol.model_of(body, options)
    if body.get("messages") is not None:
        texts: list[Tokens] = [protocol.chat_prompt(body)]
    else:
        texts = _texts(body, "input")
    for tokens in texts:
        _check_length(tokens, options)
    coded = body.get("encoding_format") == "base64"
    data = [
        {"index": index, "object": "embedding", "embedding": _coded(_vector(tokens), coded=coded)}
        for index, tokens in enumerate(texts)
    ]
    return orjson.dumps({**_list("embd", options), "data": data, "usage": _usage(texts)})


def score(body: Mapping[str, object], options: SimOptions) -> bytes:
    """The body of POST /v1/score: one text against each of the others, or pair by pair."""
    protocol.model_of(body, options)
    first = _texts(body, "queries", "data_1", "text_1")
    second = _texts(body, "documents", "items", "data_2", "text_2")
    if len(first) not in {1, len(second)}:
        raise protocol.bad_request("Input lengths must be either 1:1, 1:N or N:N")
    pairs = list(zip(first * len(second) if len(first) == 1 else first, second, strict=True))
    data = [
        {"index": index, "object": "score", "score": _likeness(one, other)}
        for index, (one, other) in enumerate(pairs)
    ]
    usage = _usage([tokens for pair in pairs for tokens in pair])
    return orjson.dumps({**_list("score", options), "data": data, "usage": usage})


def rerank(body: Mapping[str, object], options: SimOptions) -> bytes:
    """The body of POST /v1/rerank: documents by their likeness to the query, the best first."""
    protocol.model_of(body, options)
    query = _texts(body, "query")[0]
    documents = _texts(body, "documents")
    texts = protocol.items(body.get("documents"))
    results = [
        {
            "index": index,
            "document": {"text": texts[index], "multi_modal": None},
            "relevance_score": _likeness(query, tokens),
        }
        for index, tokens in enumerate(documents)
    ]
    results.sort(key=lambda result: -float(str(result["relevance_score"])))
    top = body.get("top_n")
    usage = _usage([query, *documents])
    return orjson.dumps(
        {
            "id": f"score-{secrets.token_hex(8)}",
            "model": options.served_names[0],
            "usage": {key: usage[key] for key in ("prompt_tokens", "total_tokens")},
            "results": results[:top] if isinstance(top, int) and top > 0 else results,
        }
    )


def _texts(body: Mapping[str, object], *names: str) -> list[Tokens]:
    """The first of these fields that is there, as token lists; Refused when none is."""
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, str):
            return [tokenizer.encode(value)]
        items = protocol.items(value)
        if items and isinstance(items[0], int):
            items = [items]
        return [
            tokenizer.encode(item)
            if isinstance(item, str)
            else [i for i in protocol.items(item) if isinstance(i, int)]
            for item in items
        ]
    raise protocol.invalid(f"body.{names[0]}", "Field required", "missing")


def _check_length(tokens: Tokens, options: SimOptions) -> None:
    limit = options.max_model_len
    if len(tokens) > limit:
        raise protocol.bad_request(
            f"This model's maximum context length is {limit} tokens. However, your prompt contains "
            f"at least {limit + 1} input tokens. Please reduce the length of the input prompt. "
            f"(parameter=input_tokens, value={limit + 1})",
            "input_tokens",
        )


def _vector(tokens: Tokens) -> list[float]:
    vector = [0.0] * DIMENSIONS
    for token in tokens:
        vector[token * 2654435761 % DIMENSIONS] += 1.0
    length = math.sqrt(sum(value * value for value in vector)) or 1.0
    return [value / length for value in vector]


def _likeness(one: Tokens, other: Tokens) -> float:
    return sum(a * b for a, b in zip(_vector(one), _vector(other), strict=True))


def _coded(vector: list[float], *, coded: bool) -> str | list[float]:
    if not coded:
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _list(prefix: str, options: SimOptions) -> Json:
    return {
        "id": f"{prefix}-{secrets.token_hex(8)}",
        "object": "list",
        "created": int(time.time()),
        "model": options.served_names[0],
    }


def _usage(texts: Sequence[Tokens]) -> Json:
    tokens = sum(map(len, texts))
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
