"""What engines answer when they refuse, in the words and codes of the gateway's table.

vLLM's errors have integer codes, types of its own, validation messages that are Python's, and for
a path that its model has no route for no OpenAI shape at all. The cases are those of 0.32
(`entrypoints/serve/exception_handling`); tests/engine holds the real one to them.
"""

from __future__ import annotations

import re

import orjson

from spotinference.api.kinds import Json
from spotinference.core import chunks
from spotinference.core.chunks import Endpoint
from spotinference.gateway.errors import Code, GatewayError

MAX_MESSAGE_CHARS = 2000

_SUFFIX = re.compile(r" \(parameter=[^()]*\)\s*$")
_VALIDATION = re.compile(r"^\d+ validation errors?:")
_DETAIL = re.compile(r"""'msg': (?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")""")
_CONTEXT = ("maximum context length", "max_model_len", "maximum model length")
_INPUT = {Endpoint.CHAT: "messages", Endpoint.COMPLETION: "prompt"}
_UNKNOWN = "The engine refused the request."


def refusal(endpoint: Endpoint, model: str, status: int, body: bytes) -> GatewayError:
    """The client's error for an engine's 4xx or 501, whatever the shape of its body."""
    decoded = chunks.decode(body) or {}
    error = decoded.get("error")
    if status in {405, 501} or (status == 404 and error is None):
        return GatewayError(
            Code.ENDPOINT_NOT_SUPPORTED,
            f"The model {model!r} does not have {endpoint.value}: its engine does not serve it.",
            param="model",
        )
    message, param = _words(decoded)
    if status == 404 and message.startswith("The model "):
        return GatewayError(Code.MODEL_NOT_FOUND, message, param="model")
    if any(words in message for words in _CONTEXT):
        if param == "input_tokens":
            param = _INPUT.get(endpoint, "input")
        return GatewayError(Code.CONTEXT_LENGTH_EXCEEDED, message, param=param)
    return GatewayError(
        Code.ENGINE_REFUSED, message, param=param, status=status, quotes_request=True
    )


def in_stream(endpoint: Endpoint, model: str, error: Json) -> GatewayError:
    """The same for an error that came as an event of a stream."""
    return refusal(endpoint, model, int(error["code"]), orjson.dumps({"error": error}))


def _words(decoded: Json) -> tuple[str, str | None]:
    """Message and param of an error body, freed of Python's wording."""
    error = decoded.get("error", decoded.get("detail"))
    if isinstance(error, dict):
        param = error.get("param")
        param = str(param).removeprefix("body.") if param else None
        message = str(error.get("message") or _UNKNOWN)
    else:
        param, message = None, str(error or _UNKNOWN)
    message = _SUFFIX.sub("", message)
    if _VALIDATION.match(message):
        found = _DETAIL.search(message)
        said = (found[1] or found[2]) if found else "the request is malformed"
        message = f"{param}: {said}." if param else f"{said}."
    return message[:MAX_MESSAGE_CHARS], param
