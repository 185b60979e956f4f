"""Reads a client's request: bounded, in time, valid enough that it may wake a GPU."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson
from aiohttp import HttpVersion11, web

from spotinference.api.kinds import Json
from spotinference.core.chunks import Endpoint
from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.errors import Code, GatewayError
from spotinference.gateway.messages import Request

MAX_MODEL_CHARS = 256
MAX_STOPS = 64


async def read_body(request: Request, settings: GatewaySettings) -> bytes:
    """The whole body, before anything is parked: a client that leaves is then noticed at once."""
    limit = settings.max_body_bytes
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise GatewayError(
            Code.UNSUPPORTED_ENCODING, f"Content-Encoding {encoding[:40]!r}: send it uncompressed."
        )
    if request.content.is_eof():  # it came with its head, as most do
        whole = request.body_that_came()
        if len(whole) > limit:
            raise _too_large(limit)
        return whole
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            if "Expect" in request.headers and request.version >= HttpVersion11:
                await _invite(request)
            async for part in request.content.iter_any():
                body += part
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError as error:
        raise GatewayError(
            Code.BODY_TIMEOUT, f"The body was not complete after {settings.body_timeout_s:g} s."
        ) from error
    except web.RequestPayloadError:
        # Not as the cause: its text quotes the body.
        raise GatewayError(
            Code.MALFORMED_HTTP, "The body is not framed as its head says."
        ) from None
    return bytes(body)


async def _invite(request: Request) -> None:
    """The client asked whether it may send its body (Expect: 100-continue); it has a good key."""
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # nothing of the answer itself is out


def _too_large(limit: int) -> GatewayError:
    return GatewayError(Code.BODY_TOO_LARGE, f"The body is larger than {limit} bytes.")


def parse(endpoint: Endpoint, raw: bytes) -> Json:
    """The request as an object, its routing and sampling fields checked; else 400."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise GatewayError(
            Code.INVALID_REQUEST, f"The body is not JSON: {str(error)[:200]}"
        ) from error
    if not isinstance(body, dict):
        raise GatewayError(Code.INVALID_REQUEST, "The body must be a JSON object.")
    try:
        orjson.dumps(body)  # reads four times deeper than it writes: refuse before a GPU is woken
    except orjson.JSONEncodeError as error:
        raise GatewayError(Code.INVALID_REQUEST, "The body is nested too deeply.") from error
    model = body.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= MAX_MODEL_CHARS:
        raise _invalid("model", f"must be a string of 1 to {MAX_MODEL_CHARS} characters")
    _CHECKS[endpoint](body)
    for name, value in body.items():
        if value is not None and (field := _FIELDS.get(name)) is not None and not field[0](value):
            raise _invalid(name, field[1])
    return body


def _invalid(param: str, wording: str) -> GatewayError:
    return GatewayError(Code.INVALID_REQUEST, f"{param}: {wording}.", param=param)


def _check_chat(body: Json) -> None:
    _check_messages(body.get("messages"))


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise _invalid("messages", "must be a non-empty list")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _invalid(f"messages[{index}]", "must be an object with a role")
        content = message.get("content")
        if content is not None and not isinstance(content, str | list):
            raise _invalid(f"messages[{index}].content", "must be a string or a list of parts")


def _check_prompt(body: Json) -> None:
    prompt = body.get("prompt")
    if prompt is None and body.get("prompt_embeds") is not None:
        return
    if not isinstance(prompt, str | list) or prompt == []:
        raise _invalid("prompt", "must be a string, or a non-empty list of strings or token ids")


def _check_responses(body: Json) -> None:
    _check_one_of(body, "input")
    if body.get("background"):
        raise _invalid("background", "is not supported: no replica outlives its machine")
    if body.get("previous_response_id") is not None:
        raise _invalid(
            "previous_response_id", "is not supported: responses are not kept, send all of `input`"
        )


def _check_one_of(body: Json, *names: str) -> None:
    """One of these fields says what to work on: text, or a list that is not empty."""
    for name in names:
        value = body.get(name)
        if value is not None:
            if value == [] or not isinstance(value, str | list | dict):
                raise _invalid(name, "must be a string, or a list that is not empty")
            return
    raise _invalid(names[0], "is required")


def _check_embeddings(body: Json) -> None:
    _check_one_of(body, "input", "messages")


def _check_rerank(body: Json) -> None:
    _check_one_of(body, "query")
    _check_one_of(body, "documents")


def _check_score(body: Json) -> None:
    _check_one_of(body, "queries", "text_1", "data_1")
    _check_one_of(body, "documents", "items", "text_2", "data_2")


def _check_tokenize(body: Json) -> None:
    if body.get("messages") is not None:
        _check_messages(body["messages"])
    elif not isinstance(body.get("prompt"), str):
        raise _invalid("prompt", "must be a string")


def _check_detokenize(body: Json) -> None:
    tokens = body.get("tokens")
    if not isinstance(tokens, list) or not all(map(_whole(0), tokens)):
        raise _invalid("tokens", "must be a list of token ids")


_CHECKS: dict[Endpoint, Callable[[Json], None]] = {
    Endpoint.CHAT: _check_chat,
    Endpoint.COMPLETION: _check_prompt,
    Endpoint.RESPONSES: _check_responses,
    Endpoint.EMBEDDINGS: _check_embeddings,
    Endpoint.RERANK: _check_rerank,
    Endpoint.SCORE: _check_score,
    Endpoint.TOKENIZE: _check_tokenize,
    Endpoint.DETOKENIZE: _check_detokenize,
}


def _whole(lowest: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _stop(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list)
        and len(value) <= MAX_STOPS
        and all(isinstance(item, str) for item in value)
    )


_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "stream": (lambda value: isinstance(value, bool), "must be true or false"),
    "stream_options": (lambda value: isinstance(value, dict), "must be an object"),
    "max_tokens": (_whole(0), "must be a whole number, 0 or more"),
    "max_completion_tokens": (_whole(0), "must be a whole number, 0 or more"),
    "max_output_tokens": (_whole(1), "must be a whole number, 1 or more"),
    "min_tokens": (_whole(0), "must be a whole number, 0 or more"),
    "n": (_whole(1), "must be a whole number, 1 or more"),
    "seed": (_whole(-(2**63)), "must be a whole number of 64 bits"),
    "temperature": (_number, "must be a number"),
    "top_p": (_number, "must be a number"),
    "kv_transfer_params": (lambda _: False, "is for engines among themselves; leave it out"),
    "ec_transfer_params": (lambda _: False, "is for engines among themselves; leave it out"),
    "stop": (_stop, f"must be a string or a list of at most {MAX_STOPS} strings"),
}
"""What the gateway itself relies on; the engine checks the rest."""
