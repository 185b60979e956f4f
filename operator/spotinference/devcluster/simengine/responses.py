"""The Responses API: its requests read as chat, its events and objects as vLLM writes them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import orjson

from spotinference.devcluster.simengine import forced, protocol
from spotinference.devcluster.simengine.engine import Output
from spotinference.devcluster.simengine.options import SimOptions
from spotinference.devcluster.simengine.protocol import Generation, Json

_SAMPLING = (
    "model", "stream", "temperature", "seed", "stop", "stop_token_ids", "presence_penalty",
    "frequency_penalty", "ignore_eos", "include_stop_str_in_output", "structured_outputs",
)  # fmt: skip
_ECHOED: Json = {
    "instructions": None, "metadata": None, "parallel_tool_calls": True, "tool_choice": "none",
    "tools": [], "top_p": 1.0, "background": False, "max_tool_calls": None,
    "previous_response_id": None, "prompt": None, "reasoning": None, "service_tier": "auto",
    "text": None, "top_logprobs": None, "truncation": "disabled", "user": None,
    "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip


def parse(body: Mapping[str, object], options: SimOptions) -> Generation:
    """The request as a generation; Refused as vLLM refuses."""
    asked = body.get("input")
    if asked is None:
        raise protocol.invalid("body.input", "Field required", "missing")
    chat: Json = {name: body[name] for name in _SAMPLING if name in body}
    messages: list[Json] = []
    if isinstance(body.get("instructions"), str):
        messages.append({"role": "system", "content": body["instructions"]})
    if isinstance(asked, str):
        messages.append({"role": "user", "content": asked})
    else:
        messages += [_message(item) for item in protocol.items(asked)]
    chat["messages"] = messages
    most = body.get("max_output_tokens")
    if isinstance(most, int) and most > options.max_model_len:
        raise protocol.bad_request(
            f"max_output_tokens={most} cannot be greater than max_model_len="
            f"{options.max_model_len}. Please request fewer output tokens. "
            f"(parameter=max_output_tokens, value={most})",
            "max_output_tokens",
        )
    if most is not None:
        chat["max_tokens"] = most
    text = body.get("text")
    form = text.get("format") if isinstance(text, dict) else None
    if isinstance(form, dict) and form.get("type") == "json_schema":
        chat["response_format"] = {"type": "json_schema", "json_schema": form}
    generation = protocol.parse_generation(chat, options, chat=True)
    called = forced.by_tool(body) if options.tool_parser else None  # without one, plain text
    return replace(generation, forced=called or generation.forced)


def _message(item: object) -> Json:
    if not isinstance(item, dict):
        return {"role": "user", "content": str(item)}
    if item.get("type") == "function_call":
        return {"role": "assistant", "content": str(item.get("arguments"))}
    if item.get("type") == "function_call_output":
        return {"role": "tool", "content": str(item.get("output"))}
    return {"role": item.get("role", "user"), "content": item.get("content")}


class ResponsesWriter:
    """Events of one streamed response; in the place of `wire.StreamWriter`."""

    done = b""
    """its last event is `response.completed`"""

    def __init__(self, generation: Generation, body: Mapping[str, object]) -> None:
        self._want = generation
        self._echo = {name: body.get(name, value) for name, value in _ECHOED.items()}
        if body.get("tools") and "tool_choice" not in body:
            self._echo["tool_choice"] = "auto"
        self._temperature = body.get("temperature", 1.0)
        self._id = f"resp_{secrets.token_hex(8)}"
        self._created_at = int(time.time())
        self._number = 0
        self._text = ""
        self._made = 0
        tool = generation.forced.tool if generation.forced else None
        self._tool = tool
        self._item_id = f"{'fc' if tool else 'msg'}_{secrets.token_hex(8)}"
        self._call_id = f"chatcmpl-tool-{secrets.token_hex(8)}"
        self._finish: str | None = None
        self._open = False

    def opening(self) -> list[bytes]:
        return [
            self._event(kind, {"response": self.response("in_progress", [])})
            for kind in ("response.created", "response.in_progress")
        ]

    def chunk(self, out: Output) -> bytes:
        events = []
        if not self._open and out.text:
            self._open = True
            events += self._begin()
        self._made += len(out.token_ids)
        self._finish = out.finish_reason
        if out.text:
            self._text += out.text
            kind = "function_call_arguments" if self._tool else "output_text"
            body: Json = {"content_index": 0, "delta": out.text, "item_id": self._item_id}
            body |= {"logprobs": [], "output_index": 0}
            if self._tool:
                body = {"delta": out.text, "item_id": self._item_id, "output_index": 0}
            events.append(self._event(f"response.{kind}.delta", body))
        return b"".join(events)

    def closing(self) -> list[bytes]:
        events = self._end() if self._open else []
        output = [self._item("completed")] if self._open else []
        return [*events, self._event("response.completed", {"response": self.whole(output)})]

    def whole(self, output: Sequence[Json]) -> Json:
        """The response after its last token."""
        status = "incomplete" if self._finish == "length" else "completed"
        return self.response(status, output)

    def answer(self, outputs: Sequence[Output]) -> bytes:
        """The body of a response that is not streamed."""
        out = outputs[0]
        self._text, self._made, self._finish = out.text, len(out.token_ids), out.finish_reason
        return orjson.dumps(self.whole([self._item("completed")]))

    def _begin(self) -> list[bytes]:
        added = self._event(
            "response.output_item.added", {"item": self._item("in_progress"), "output_index": 0}
        )
        if self._tool:
            return [added]
        return [added, self._part("added", [])]

    def _end(self) -> list[bytes]:
        item = self._event(
            "response.output_item.done", {"item": self._item("completed"), "output_index": 0}
        )
        if self._tool:
            done: Json = {"arguments": self._text, "item_id": self._item_id, "name": self._tool}
            done["output_index"] = 0
            return [self._event("response.function_call_arguments.done", done), item]
        said: Json = {"content_index": 0, "item_id": self._item_id, "logprobs": []}
        said |= {"output_index": 0, "text": self._text}
        return [self._event("response.output_text.done", said), self._part("done", None), item]

    def _part(self, what: str, logprobs: list[object] | None) -> bytes:
        part: Json = {"annotations": [], "text": self._text, "type": "output_text"}
        part["logprobs"] = logprobs
        body: Json = {"content_index": 0, "item_id": self._item_id, "output_index": 0, "part": part}
        return self._event(f"response.content_part.{what}", body)

    def _item(self, status: str) -> Json:
        if self._tool:
            return {
                "arguments": self._text, "call_id": self._call_id, "name": self._tool,
                "type": "function_call", "id": self._item_id, "namespace": None, "status": status,
            }  # fmt: skip
        part: Json = {"annotations": [], "text": self._text, "type": "output_text"}
        part["logprobs"] = None
        return {
            "id": self._item_id,
            "content": [part] if self._text else [],
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    def _event(self, kind: str, body: Json) -> bytes:
        data = orjson.dumps({**body, "sequence_number": self._number, "type": kind})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)

    def response(self, status: str, output: Sequence[Json]) -> Json:
        """The response object in some state of its life."""
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self._id,
            "created_at": self._created_at,
            "incomplete_details": cut,
            "model": self._want.model,
            "object": "response",
            "output": list(output),
            **self._echo,
            "temperature": self._temperature,
            "max_output_tokens": self._want.max_tokens,
            "status": status,
            "usage": None if status == "in_progress" else self._usage(),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }

    def _usage(self) -> Json:
        prompt = len(self._want.prompts[0])
        return {
            "input_tokens": prompt,
            "input_tokens_details": {
                "cached_tokens": 0, "cache_write_tokens": 0, "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": self._made,
            "output_tokens_details": {
                "reasoning_tokens": 0, "tool_output_tokens": 0, "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": prompt + self._made,
        }  # fmt: skip
