"""A whole answer out of a streamed one: what the engine would have said had it not been streamed.

Only for answers of plain text with one choice (class token): there a stream has all that the whole
answer has. Fields and their order are vLLM's (0.32), held to it by tests/engine; the sum of the
usage, the id and the time are the stream's.
"""

from __future__ import annotations

import orjson

from spotinference.api.kinds import Json
from spotinference.core.chunks import Endpoint
from spotinference.core.delivered import Delivered


def whole(endpoint: Endpoint, delivered: Delivered) -> bytes:
    """The answer as JSON; `delivered` is settled and finished, with its usage."""
    who, only = delivered.identity, delivered.only
    assert who is not None
    assert delivered.usage is not None
    chat = endpoint is Endpoint.CHAT
    text = only.text_from(0)
    ending: Json = {
        "logprobs": None, "finish_reason": only.finish_reason, "stop_reason": only.stop_reason,
        "token_ids": None,
    }  # fmt: skip
    if chat:
        message = dict.fromkeys(_MESSAGE) | {"role": only.role or "assistant", "content": text}
        choice = {"index": 0, "message": message, **ending, "routed_experts": None}
    else:
        unasked = {"prompt_logprobs": None, "prompt_token_ids": None, "routed_experts": None}
        choice = {"index": 0, "text": text, **ending, **unasked}
    details = ("prompt_tokens_details", "completion_tokens_details")
    answer: Json = {
        "id": who.id,
        "object": "chat.completion" if chat else "text_completion",
        "created": who.created,
        "model": who.model,
        "choices": [choice],
        "service_tier": None,
        "system_fingerprint": delivered.system_fingerprint,
        "usage": delivered.usage | {name: delivered.usage.get(name) for name in details},
    }
    if chat:
        answer |= dict.fromkeys(("prompt_logprobs", "prompt_token_ids", "prompt_text"))
    answer |= dict.fromkeys(("kv_transfer_params", "ec_transfer_params"))
    answer["metrics"] = delivered.metrics
    return orjson.dumps(answer)


_MESSAGE = (
    "role", "content", "refusal", "annotations", "audio", "function_call", "reasoning",
)  # fmt: skip
