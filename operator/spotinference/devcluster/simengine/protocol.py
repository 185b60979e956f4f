"""Request bodies in, and vLLM's own errors out: statuses, wording and shapes as it has them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from spotinference.devcluster.simengine import forced, tokenizer
from spotinference.devcluster.simengine.forced import Forced
from spotinference.devcluster.simengine.options import SimOptions
from spotinference.devcluster.simengine.shaping import Shape

Json = dict[str, object]
NO_SHAPE = Shape()

DEFAULT_COMPLETION_TOKENS = 16
MAX_TEMPERATURE = 2.0


class Refused(Exception):
    """An answer in vLLM's error shape."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param

    def body(self) -> bytes:
        return orjson.dumps(
            {
                "error": {
                    "message": self.message,
                    "type": self.kind,
                    "param": self.param,
                    "code": self.status,
                }
            }
        )


def bad_request(message: str, param: str | None = None) -> Refused:
    return Refused(400, message, "BadRequestError", param)


def queue_full() -> Refused:
    return Refused(
        503,
        "The engine is currently busy and cannot accept new requests. "
        "Please try again later or on a different instance.",
        "Service Unavailable",
    )


def shutting_down() -> Refused:
    return Refused(500, "cannot schedule new futures after shutdown", "InternalServerError")


def core_died() -> Refused:
    return Refused(
        500,
        "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "InternalServerError",
    )


@dataclass(frozen=True, slots=True)
class Generation:
    """What one HTTP request asks for, parsed and checked."""

    chat: bool
    model: str
    """The first served name, whichever alias was asked for: so answers vLLM."""
    prompts: tuple[tuple[int, ...], ...]
    text_prompt: bool
    max_tokens: int
    min_tokens: int
    n: int
    seed: int | None
    greedy: bool
    output_only: bool
    ignore_eos: bool
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    include_stop: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    logprobs: bool
    echo: bool = False
    """completions: the text of the prompt comes first"""
    embedded: bool = False
    """the prompt came as embeddings: it has no token ids"""
    shape: Shape = NO_SHAPE
    role: str = "assistant"
    forced: Forced | None = None
    """what a grammar or a tool makes the answer say"""

    def seed_of(self, index: int) -> int | None:
        """The random generator's seed of the `index`-th sequence; None when greedy."""
        if self.greedy:
            return None
        return (random.getrandbits(62) if self.seed is None else self.seed) + index


def parse_json(body: bytes) -> Json:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(
            400,
            "1 validation error:\n  {'type': 'json_invalid', 'loc': 'body', "
            f"'msg': 'JSON decode error', 'ctx': {{'error': '{error.msg}'}}}}",
            "Bad Request",
            "body",
        ) from None
    if not isinstance(value, dict):
        raise invalid("body", "Input should be a valid dictionary")
    return value


def invalid(param: str, message: str, kind: str = "type_error") -> Refused:
    text = f"1 validation error:\n  {{'type': '{kind}', 'loc': '{param}', 'msg': '{message}'}}"
    return Refused(400, text, "Bad Request", param)


def parse_generation(body: Mapping[str, object], options: SimOptions, *, chat: bool) -> Generation:
    """The request as a value; Refused as vLLM refuses."""
    prompts: tuple[tuple[int, ...], ...]
    if chat:
        prompts, text_prompt = (chat_prompt(body),), True
        logprobs = bool(body.get("logprobs"))
    else:
        prompts, text_prompt = _completion_prompts(body)
        logprobs = body.get("logprobs") is not None
    stream, usage = _stream(body)
    if stream and body.get("use_beam_search") and not chat:
        raise bad_request("Streaming is not currently supported with beam search")
    model_of(body, options)
    temperature = _temperature(body)
    n = _whole(body, "n") or 1
    if n > 1 and temperature == 0:
        raise bad_request(f"n must be 1 when using greedy sampling, got {n}.")
    shape = _shape(body, options) if chat else NO_SHAPE
    longest = max(len(prompt) for prompt in prompts)
    return Generation(
        chat=chat,
        model=options.served_names[0],
        prompts=prompts,
        text_prompt=text_prompt,
        max_tokens=_max_tokens(body, options, longest, chat=chat, text=text_prompt),
        min_tokens=_whole(body, "min_tokens") or 0,
        n=n,
        seed=_whole(body, "seed"),
        greedy=temperature == 0,
        output_only=_output_only(body) or shape.forced,
        ignore_eos=bool(body.get("ignore_eos")),
        stop=_stops(body),
        stop_token_ids=frozenset(
            i for i in items(body.get("stop_token_ids")) if isinstance(i, int)
        ),
        include_stop=bool(body.get("include_stop_str_in_output")),
        stream=stream,
        include_usage=bool(usage.get("include_usage")),
        continuous_usage=bool(usage.get("include_usage"))
        and bool(usage.get("continuous_usage_stats")),
        return_token_ids=bool(body.get("return_token_ids")),
        logprobs=logprobs and not shape.hide_reasoning,
        echo=not chat and bool(body.get("echo")),
        embedded=not chat and bool(body.get("prompt_embeds")),
        shape=shape,
        role=_messages(body)[-1][0] if body.get("continue_final_message") else "assistant",
        forced=forced.by_schema(body),
    )


def _stream(body: Mapping[str, object]) -> tuple[bool, Mapping[str, object]]:
    """Whether to stream, and the stream's options."""
    stream = bool(body.get("stream"))
    options = body.get("stream_options")
    if options is not None and not stream:
        raise bad_request(
            "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
            "stream_options",
        )
    return stream, options if isinstance(options, dict) else {}


def _temperature(body: Mapping[str, object]) -> float:
    temperature = _real(body, "temperature", 1.0)
    if temperature < 0:
        raise bad_request(
            f"temperature must be non-negative, got {temperature}. "
            f"(parameter=temperature, value={temperature})",
            "temperature",
        )
    if temperature > MAX_TEMPERATURE:
        raise bad_request(
            f"temperature must be in [0, 2], got {temperature}. "
            f"(parameter=temperature, value={temperature})",
            "temperature",
        )
    return temperature


def _stops(body: Mapping[str, object]) -> tuple[str, ...]:
    stop = body.get("stop") or ()
    stops = (stop,) if isinstance(stop, str) else tuple(str(s) for s in items(stop))
    return tuple(s for s in stops if s)


def _output_only(body: Mapping[str, object]) -> bool:
    """The next token depends on the output alone: penalties on it, or a grammar."""
    form = body.get("response_format")
    grammar = bool(body.get("structured_outputs")) or (
        isinstance(form, dict) and form.get("type") in {"json_object", "json_schema"}
    )
    penalties = _real(body, "presence_penalty", 0.0) or _real(body, "frequency_penalty", 0.0)
    return bool(penalties) or grammar


def _shape(body: Mapping[str, object], options: SimOptions) -> Shape:
    """What parsers will make of the answer."""
    choice = body.get("tool_choice") or "auto"
    names = []
    for tool in items(body.get("tools")) if choice != "none" else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        names.append(str(function.get("name")) if isinstance(function, dict) else "")
    named = isinstance(choice, dict)
    if isinstance(choice, dict):
        names = [str(choice["function"]["name"])]
    parsing = options.reasoning_parser or options.tool_parser
    obliged = bool(names) and (named or choice == "required")
    if names and not options.tool_parser:
        asked = f'tool_choice=function "{names[0]}"' if named else f'tool_choice="{choice}"'
        raise bad_request(
            f"{asked} requires --tool-call-parser to be set"
            if obliged
            else '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser '
            "to be set"
        )
    return Shape(
        reasoning=options.reasoning_parser,
        tools=tuple(names),
        forced=obliged,
        named=named,
        hide_reasoning=parsing and body.get("include_reasoning") is False,
        parallel=body.get("parallel_tool_calls") is not False,
    )


def model_of(body: Mapping[str, object], options: SimOptions) -> None:
    """Refused with 404 when the body names a model that is not served; naming none is fine."""
    model = body.get("model")
    if model is None or model in options.served_names:
        return
    aliases = ", ".join(options.served_names)
    raise Refused(
        404,
        f"The model `{model}` does not exist. Valid aliases: {aliases}."
        if len(options.served_names) > 1
        else f"The model `{model}` does not exist.",
        "NotFoundError",
        "model",
    )


def _max_tokens(
    body: Mapping[str, object], options: SimOptions, prompt_len: int, *, chat: bool, text: bool
) -> int:
    limit = options.max_model_len
    asked = _whole(body, "max_completion_tokens") if chat else None
    if asked is None:
        asked = _whole(body, "max_tokens")
    if asked is not None and asked < 1:
        raise bad_request(
            f"max_tokens must be at least 1, got {asked}. (parameter=max_tokens, value={asked})",
            "max_tokens",
        )
    if asked is not None and asked > limit:
        raise bad_request(
            f"max_tokens={asked} cannot be greater than max_model_len={limit}. "
            f"Please request fewer output tokens. (parameter=max_tokens, value={asked})",
            "max_tokens",
        )
    room = limit - prompt_len
    if room < 0:
        # Text is cut one token behind the limit before it is counted.
        seen, words = (f"at least {limit + 1}", limit + 1) if text else (prompt_len, prompt_len)
        raise bad_request(
            f"This model's maximum context length is {limit} tokens. However, your prompt contains "
            f"{seen} input tokens, which exceeds this limit even without any output tokens. Please "
            f"reduce the length of the input prompt. (parameter=input_tokens, value={words})",
            "input_tokens",
        )
    if room == 0:
        raise bad_request(
            "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)", "max_tokens"
        )
    if asked is None:
        asked = room if chat else DEFAULT_COMPLETION_TOKENS
    return min(asked, room)


def _messages(body: Mapping[str, object]) -> list[tuple[str, str]]:
    messages = body.get("messages")
    if messages is None:
        raise invalid("body.messages", "Field required", "missing")
    if not isinstance(messages, list):
        raise invalid("body.messages", "Input should be a valid list")
    if not messages:
        raise bad_request(
            "Cannot apply chat template to an empty conversation. Provide at least one message."
        )
    result: list[tuple[str, str]] = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise invalid("body.messages.0.role", "Field required", "missing")
        content = message.get("content")
        if isinstance(content, list):
            content = "\n".join(
                str(part.get("text", "")) for part in content if isinstance(part, dict)
            )
        result.append((message["role"], str(content or "")))
    return result


def chat_prompt(body: Mapping[str, object]) -> tuple[int, ...]:
    continued = bool(body.get("continue_final_message"))
    generation_prompt = bool(body.get("add_generation_prompt", True))
    if continued and generation_prompt:
        raise bad_request(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
        )
    return tuple(
        tokenizer.render_chat(
            _messages(body),
            add_generation_prompt=generation_prompt,
            continue_final_message=continued,
        )
    )


def _completion_prompts(body: Mapping[str, object]) -> tuple[tuple[tuple[int, ...], ...], bool]:
    """Token prompts, and whether text had to be tokenised (draining treats that differently)."""
    prompt = body.get("prompt")
    embeds = body.get("prompt_embeds")
    if prompt is None and isinstance(embeds, str) and embeds:
        return (tuple(tokenizer.encode(embeds)),), True
    if isinstance(prompt, str):
        return (tuple(tokenizer.encode(prompt)),), True
    if not isinstance(prompt, list):
        raise bad_request("Either prompt or prompt_embeds must be provided and non-empty.")
    if not prompt:
        raise bad_request("You must pass at least one prompt")
    if isinstance(prompt[0], int):
        prompt = [prompt]
    prompts: list[tuple[int, ...]] = []
    text = False
    for one in prompt:
        if isinstance(one, str):
            text = True
            prompts.append(tuple(tokenizer.encode(one)))
            continue
        ids = tuple(i for i in items(one) if isinstance(i, int))
        for token in ids:
            if not 0 <= token < tokenizer.VOCAB_SIZE:
                raise bad_request(f"Token id {token} is out of vocabulary")
        prompts.append(ids)
    return tuple(prompts), text


def items(value: object) -> list[object]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _whole(body: Mapping[str, object], name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise invalid(f"body.{name}", "Input should be a valid integer", "int_parsing")
    return value


def _real(body: Mapping[str, object], name: str, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise invalid(f"body.{name}", "Input should be a valid number", "float_parsing")
    return float(value)
