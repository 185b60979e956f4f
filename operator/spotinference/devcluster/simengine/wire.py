"""Response bodies and stream chunks, in vLLM's shape: order of the fields, nulls and all.

A chunk is put together from bytes that were made once per request: with 200 streams on a shared
core, what is done per token decides.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import orjson

from spotinference import __version__
from spotinference.devcluster.simengine import shaping, tokenizer
from spotinference.devcluster.simengine.engine import Output
from spotinference.devcluster.simengine.protocol import Generation
from spotinference.devcluster.simengine.shaping import Shaper

FINGERPRINT = f"sim-{__version__}"
DONE = b"data: [DONE]\n\n"
SIM_LOGPROB = -0.125


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
    }


class Writer(Protocol):
    """Makes the events of one streamed answer."""

    done: bytes
    """what ends the stream"""

    def opening(self) -> list[bytes]: ...

    def chunk(self, out: Output) -> bytes: ...

    def closing(self) -> list[bytes]: ...


class StreamWriter:
    """Chunks of one streamed answer."""

    done = DONE

    def __init__(self, generation: Generation) -> None:
        self._want = generation
        prefix = "chatcmpl" if generation.chat else "cmpl"
        self.id = f"{prefix}-{secrets.token_hex(8)}"
        kind = "chat.completion.chunk" if generation.chat else "text_completion"
        head = orjson.dumps(
            {
                "id": self.id,
                "object": kind,
                "created": int(time.time()),
                "model": generation.model,
                "choices": [],
            }
        )
        self._head = b"data: " + head[: -len(b"]}")]
        count = generation.n * len(generation.prompts)
        self._made = [0] * count
        self._reasoned = [0] * count
        self._chars = [0] * count
        self._prompt = [len(prompt) for prompt in generation.prompts]
        self._shapers = [Shaper(generation.shape) for _ in range(count)]
        if generation.shape.hide_reasoning:
            self._want = replace(generation, return_token_ids=False)

    def opening(self) -> list[bytes]:
        """The role chunks a chat stream starts with; a completions stream starts with text."""
        want = self._want
        if not want.chat:
            return []
        prompt_ids = orjson.dumps(want.prompts[0]) if want.return_token_ids else b"null"
        role = orjson.dumps(want.role)
        return [
            b"".join(
                (
                    self._head,
                    b'{"index":%d,"delta":{"role":%b,"content":""},' % (index, role),
                    b'"logprobs":null,"finish_reason":null}]',
                    self._usage(self._prompt[0], 0, 0) if want.continuous_usage else b"",
                    b',"prompt_token_ids":%b,"prompt_text":null}\n\n' % prompt_ids,
                )
            )
            for index in range(want.n)
        ]

    def chunk(self, out: Output) -> bytes:
        """Empty when there is nothing to show, not even token ids."""
        want = self._want
        delta: bytes | None = None
        if want.shape.shaped:
            shaper = self._shapers[out.index]
            self._reasoned[out.index] += shaper.reasoning_tokens(out.token_ids)
            fields = shaper.feed(out.text, out.finish_reason)
            out.finish_reason = shaper.finish(out.finish_reason)
            if not fields and out.finish_reason is None and not want.return_token_ids:
                self._made[out.index] += len(out.token_ids)
                return b""
            delta = orjson.dumps(fields)
        first = self._made[out.index] == 0
        self._made[out.index] += len(out.token_ids)
        text = orjson.dumps(out.text)
        ids = orjson.dumps(out.token_ids) if want.return_token_ids else b"null"
        finish = b"null" if out.finish_reason is None else b'"%b"' % out.finish_reason.encode()
        logprobs = orjson.dumps(self._logprobs(out)) if want.logprobs else b"null"
        prompt = out.index // want.n
        if want.chat:
            stop = b""
            if out.finish_reason is not None:
                stop = b',"stop_reason":%b' % orjson.dumps(out.stop_reason)
            delta = b'{"content":%b}' % text if delta is None else delta
            body = b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b%b,"token_ids":%b}]' % (
                out.index,
                delta,
                logprobs,
                finish,
                stop,
                ids,
            )
        else:
            prompt_ids = b"null"
            if first and want.return_token_ids and not want.embedded:
                prompt_ids = orjson.dumps(want.prompts[prompt])
            if first and want.echo and not want.return_token_ids:
                text = orjson.dumps(tokenizer.decode(want.prompts[prompt]) + out.text)
            body = (
                b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b,"stop_reason":%b,'
                b'"prompt_token_ids":%b,"token_ids":%b}]'
                % (
                    out.index,
                    text,
                    logprobs,
                    finish,
                    orjson.dumps(out.stop_reason),
                    prompt_ids,
                    ids,
                )
            )
        tail = b""
        if out.finish_reason is not None and not want.include_usage:
            tail = b',"system_fingerprint":"%b"' % FINGERPRINT.encode()
        if want.continuous_usage:
            made, reasoned = self._made[out.index], self._reasoned[out.index]
            tail = self._usage(self._prompt[prompt], made, reasoned)
        return b"".join((self._head, body, tail, b"}\n\n"))

    def closing(self) -> list[bytes]:
        """The usage chunk, when asked for."""
        if not self._want.include_usage:
            return []
        total = self._usage(sum(self._prompt), sum(self._made), sum(self._reasoned))
        fingerprint = b',"system_fingerprint":"%b"' % FINGERPRINT.encode()
        return [b"".join((self._head, b"]", total, fingerprint, b"}\n\n"))]

    def _usage(self, prompt: int, completion: int, reasoning: int) -> bytes:
        body: dict[str, object] = {**usage(prompt, completion)}
        if self._want.shape.reasoning:
            body["completion_tokens_details"] = {"reasoning_tokens": reasoning}
        return b',"usage":' + orjson.dumps(body)

    def _logprobs(self, out: Output) -> dict[str, object]:
        if self._want.chat:
            return {"content": [_chat_logprob(token) for token in out.token_ids]}
        start = self._chars[out.index]
        self._chars[out.index] += sum(len(tokenizer.decode((i,))) for i in out.token_ids)
        return completion_logprobs(out.token_ids, start)


def _chat_logprob(token: int) -> dict[str, object]:
    return {
        "token": tokenizer.decode((token,)),
        "logprob": SIM_LOGPROB,
        "bytes": list(tokenizer.BYTES[token]),
        "top_logprobs": [],
    }


def completion_logprobs(token_ids: Sequence[int], start: int = 0) -> dict[str, object]:
    tokens = [tokenizer.decode((token,)) for token in token_ids]
    offsets = []
    for text in tokens:
        offsets.append(start)
        start += len(text)
    return {
        "text_offset": offsets,
        "token_logprobs": [SIM_LOGPROB] * len(tokens),
        "tokens": tokens,
        "top_logprobs": [{text: SIM_LOGPROB} for text in tokens],
    }


def whole_answer(want: Generation, outputs: Sequence[Output]) -> bytes:
    """The body of an answer that is not streamed; `outputs` has one entry per sequence."""
    choice = _whole_chat_choice if want.chat else _whole_completion_choice
    made = sum(len(out.token_ids) for out in outputs)
    reasoning = sum(Shaper(want.shape).reasoning_tokens(out.token_ids) for out in outputs)
    body: dict[str, object] = {
        "id": f"{'chatcmpl' if want.chat else 'cmpl'}-{secrets.token_hex(8)}",
        "object": "chat.completion" if want.chat else "text_completion",
        "created": int(time.time()),
        "model": want.model,
        "choices": [choice(want, out) for out in outputs],
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": {
            **usage(sum(map(len, want.prompts)), made),
            "prompt_tokens_details": None,
            "completion_tokens_details": (
                {"reasoning_tokens": reasoning} if want.shape.reasoning else None
            ),
        },
    }
    if want.chat:
        body["prompt_logprobs"] = None
        body["prompt_token_ids"] = want.prompts[0] if want.return_token_ids else None
        body["prompt_text"] = None
    last = dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics"))
    return orjson.dumps(body | last)


def _whole_chat_choice(want: Generation, out: Output) -> dict[str, object]:
    message: dict[str, object] = {
        "role": want.role,
        "content": out.text,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "reasoning": None,
    }
    finish, ids = out.finish_reason, out.token_ids if want.return_token_ids else None
    if want.shape.shaped:
        fields, finish = shaping.message(want.shape, out.text, out.finish_reason)
        message |= fields
        ids = None if want.shape.hide_reasoning else ids
    content = {"content": [_chat_logprob(token) for token in out.token_ids]}
    return {
        "index": out.index,
        "message": message,
        "logprobs": content if want.logprobs else None,
        "finish_reason": finish,
        "stop_reason": out.stop_reason,
        "token_ids": ids,
        "routed_experts": None,
    }


def _whole_completion_choice(want: Generation, out: Output) -> dict[str, object]:
    prompt, text = want.prompts[out.index // want.n], out.text
    if want.echo and not want.return_token_ids:
        text = tokenizer.decode(prompt) + text
    return {
        "index": out.index,
        "text": text,
        "logprobs": completion_logprobs(out.token_ids) if want.logprobs else None,
        "finish_reason": out.finish_reason,
        "stop_reason": out.stop_reason,
        "token_ids": out.token_ids if want.return_token_ids else None,
        "prompt_logprobs": None,
        "prompt_token_ids": prompt if want.return_token_ids and not want.embedded else None,
        "routed_experts": None,
    }
