"""Errors as vLLM 0.32 writes them, and what the gateway makes of each."""

from __future__ import annotations

import json

import pytest

from spotinference.core.chunks import Endpoint
from spotinference.gateway.errors import Code
from spotinference.gateway.refusals import refusal


def body(message: str, param: str | None = None, kind: str = "BadRequestError") -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": param}}).encode()


MISSING = "1 validation error:\n  {'type': 'missing', 'loc': 'body.input', 'msg': 'Field required'}"
QUOTED = """1 validation error:\n  {'type': 'value_error', 'loc': 'x', 'msg': "it's wrong"}"""
LONG = (
    "This model's maximum context length is 2048 tokens. However, your prompt contains at least "
    "2049 input tokens. (parameter=input_tokens, value=2049)"
)
SEEN = [
    (404, b'{"detail":"Not Found"}', Code.ENDPOINT_NOT_SUPPORTED, "model", "/v1/chat/completions"),
    (
        501,
        body("The model does not support Embeddings API", None, "NotImplementedError"),
        Code.ENDPOINT_NOT_SUPPORTED,
        "model",
        "does not have",
    ),
    (405, b"", Code.ENDPOINT_NOT_SUPPORTED, "model", "does not have"),
    (404, body("The model `x` does not exist."), Code.MODEL_NOT_FOUND, "model", "does not exist"),
    (404, body("Response with id 'r' not found.", "response_id"), Code.ENGINE_REFUSED, "response_id",
     "not found"),
    (400, body(LONG, "input_tokens"), Code.CONTEXT_LENGTH_EXCEEDED, "messages", "2048 tokens"),
    (400, body(MISSING, "body.input"), Code.ENGINE_REFUSED, "input", "input: Field required."),
    (400, body(QUOTED), Code.ENGINE_REFUSED, None, "it's wrong."),
    (400, body("temperature must be in [0, 2], got 3. (parameter=temperature, value=3)",
               "temperature"), Code.ENGINE_REFUSED, "temperature", "got 3."),
    (400, b"<html>", Code.ENGINE_REFUSED, None, "refused"),
    (401, b'{"error":"Unauthorized"}', Code.ENGINE_REFUSED, None, "Unauthorized"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "raw", "code", "param", "words"), SEEN)
def test_every_shape_of_refusal_becomes_one(
    status: int, raw: bytes, code: Code, param: str | None, words: str
) -> None:
    error = refusal(Endpoint.CHAT, "demo", status, raw)
    assert (error.code, error.param) == (code, param)
    assert words in error.message
    assert "(parameter=" not in error.message
    assert "validation error" not in error.message


def test_what_may_quote_the_prompt_is_not_for_logs() -> None:
    error = refusal(Endpoint.CHAT, "demo", 400, body("'my secret' is no valid prompt"))
    assert "secret" in error.message
    assert "secret" not in error.logged
