"""How an answer survives its replica: classes of requests, and what to send next.

A request gets its class when it arrives (`prepare`). When a replica is lost, `plan` says how the
answer goes on, from what the client already has:

    class     at a loss
    token     prompt ids + generated ids go to /v1/completions as a token prompt
    replay    the same request again; what the client has is verified and dropped, then on
    restart   nothing was delivered yet: the same request again
    refused   an error event and an aborted connection; never a normal end

A token prompt continues exactly only where the engine's sampling depends on nothing but the
tokens before (greedy, no output-counting penalties, no grammar); a replay repeats whatever is
greedy or seeded, so an unseeded request is given a seed on arrival. A replay is verified by token
ids where the engine reports them, and always by what the client sees (`core/deltas.py`): its text,
reasoning and tool calls must begin with those that were delivered. `splice.py` carries on what
`plan` decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from spotinference.api.kinds import Json
from spotinference.core import chunks
from spotinference.core.chunks import Endpoint
from spotinference.core.delivered import MAX_TOKENS, Delivered
from spotinference.core.deltas import IDS, TEXT, Channel, Part


class Class(StrEnum):
    TOKEN = "token"  # noqa: S105 - a class of continuation, no secret
    REPLAY = "replay"
    RESTART = "restart"
    REFUSED = "refused"


class Prepared(NamedTuple):
    """A request as it goes to the engine, and how its answer may be continued."""

    endpoint: Endpoint
    body: Json
    kind: Class
    reason: str
    """why this class, for logs and for the error of a refused one"""
    stream: bool
    hide_token_ids: bool
    include_usage: bool
    """the client asked for it; the engine is asked always, to know what an answer cost"""
    continuous_usage: bool
    parsed: bool = False
    """chat of a tier with a reasoning parser: its engine alone can count the tokens of reasoning"""
    choices: int = 1
    prompts: int = 1
    gathered: bool = False
    """not streamed to the client, but from the engine, so that a loss does not cost the whole"""


@dataclass(frozen=True, slots=True)
class Next:
    """The request that carries the answer on, and what to expect from its beginning."""

    kind: Class
    path: str
    body: Json
    expect: Mapping[int, Mapping[Channel, Part]]
    """per choice and channel: what the client already has and what will come again"""
    base_tokens: int
    """generated tokens that are part of the new prompt"""
    needs_max_tokens: bool
    """no max_tokens was given in chat: fill in the context that is left (`with_max_tokens`)"""

    prompt_tokens: int = 0
    """tokens that the new replica has to process before its first; 0: not known"""

    @property
    def repeated_tokens(self) -> int:
        """Tokens that are generated once more."""
        return sum(len(parts.get(IDS, ())) for parts in self.expect.values())


@dataclass(frozen=True, slots=True)
class Ending:
    """The answer was finished when its replica died: only these events were missing."""

    events: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: str


_COPIED = (
    "model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop",
    "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "skip_special_tokens",
    "spaces_between_special_tokens", "logit_bias", "allowed_token_ids", "priority", "cache_salt",
    "user", "session_id", "stream_options", "stream_interval",
)  # fmt: skip
"""Fields of chat that mean the same in a token prompt to /v1/completions."""

_HARMLESS = frozenset(_COPIED) | {
    "messages", "prompt", "stream", "n", "max_tokens", "max_completion_tokens", "min_tokens",
    "metadata", "store", "service_tier", "request_id", "add_generation_prompt",
    "continue_final_message", "add_special_tokens", "documents", "chat_template",
    "chat_template_kwargs", "truncate_prompt_tokens", "truncation_side", "return_token_ids",
    "safety_identifier", "prompt_cache_key", "parallel_tool_calls",
}  # fmt: skip
"""Fields that are over and done with once the prompt's ids are known. Any other field set to
something means replay: an unknown field may act on the output."""


def prepare(
    endpoint: Endpoint,
    body: Json,
    *,
    seed: int,
    enabled: bool = True,
    parsed: bool = False,
    gather_tokens: int | None = None,
) -> Prepared:
    """Classifies a valid request and readies it for the engine.

    `seed` is injected where the client gave none and sampling would be random. `parsed`: the tier
    runs a reasoning parser, so chat chunks are not just the tokens' text. `gather_tokens`: answers
    that may be so long and are not streamed are gathered from a stream, where that is exact.
    """
    stream = body.get("stream") is True
    options = body.get("stream_options") or {}
    if not stream and not _greedy(body):  # only what is greedy is ever gathered
        return whole(endpoint, body)
    kind, reason = _classify(endpoint, body, enabled=enabled, parsed=parsed)
    gathered = not stream and _gathers(endpoint, body, kind, gather_tokens)
    if not stream and not gathered:
        return whole(endpoint, body)
    sent = dict(body)
    if gathered:
        sent["stream"] = True
    sent["stream_options"] = options | {"include_usage": True}
    if not options.get("include_usage"):  # without that the engine would not have told it either
        sent["stream_options"].pop("continuous_usage_stats", None)
    if kind in {Class.TOKEN, Class.REPLAY}:
        if not _echo(endpoint, body):
            sent["return_token_ids"] = True
        if kind is Class.REPLAY and body.get("seed") is None and not _greedy(body):
            sent["seed"] = seed
    prompts = _prompts(endpoint, body)
    return Prepared(
        endpoint=endpoint,
        body=sent,
        kind=kind,
        reason=reason,
        stream=stream,
        hide_token_ids=not body.get("return_token_ids"),
        include_usage=bool(options.get("include_usage")) or gathered,
        continuous_usage=bool(options.get("include_usage"))
        and bool(options.get("continuous_usage_stats")),
        parsed=parsed and endpoint is Endpoint.CHAT,
        choices=prompts * int(body.get("n") or 1),
        prompts=prompts,
        gathered=gathered,
    )


def whole(endpoint: Endpoint, body: Json) -> Prepared:
    """A request whose answer is one JSON object: nothing to carry on, only to ask again."""
    return Prepared(
        endpoint=endpoint,
        body=body,
        kind=Class.RESTART,
        reason="nothing is sent before the answer is whole",
        stream=False,
        hide_token_ids=False,
        include_usage=False,
        continuous_usage=False,
    )


def _gathers(endpoint: Endpoint, body: Json, kind: Class, tokens: int | None) -> bool:
    """A replay generates all of it again, just as a second request does: nothing to gain there."""
    if tokens is None or kind is not Class.TOKEN or body.get("return_token_ids"):
        return False
    limit = _limit(endpoint, body)
    return limit is None or limit >= tokens


def _prompts(endpoint: Endpoint, body: Json) -> int:
    prompt = body.get("prompt") if endpoint is Endpoint.COMPLETION else None
    return len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1


def _echo(endpoint: Endpoint, body: Json) -> bool:
    """The engine leaves the echoed prompt out of a completion when token ids are asked for."""
    return endpoint is Endpoint.COMPLETION and bool(body.get("echo"))


def _greedy(body: Json) -> bool:
    temperature = body.get("temperature")
    return isinstance(temperature, int | float) and temperature == 0


def _classify(endpoint: Endpoint, body: Json, *, enabled: bool, parsed: bool) -> tuple[Class, str]:
    if not enabled:
        return Class.REFUSED, "spec.interruption.continuation is off"
    if not _greedy(body):
        return Class.REPLAY, "sampled with a seed"
    if (body.get("n") or 1) != 1 or _prompts(endpoint, body) != 1:
        return Class.REPLAY, "several choices"
    if parsed and endpoint is Endpoint.CHAT:
        return Class.REPLAY, "a reasoning parser shapes the answer"
    if body.get("echo"):
        return Class.REPLAY, "echo"
    if _has_media(body):
        return Class.REPLAY, "the prompt has parts that are not text"
    for name, value in body.items():
        if name not in _HARMLESS and _is_set(name, value):
            if name == "response_format" and value == {"type": "text"}:
                continue
            if name in {"include_reasoning", "tool_choice"}:
                continue  # tool_choice matters only beside tools, which are seen on their own
            return Class.REPLAY, f"{name} acts on the output"
    return Class.TOKEN, "greedy"


def _is_set(name: str, value: object) -> bool:
    """Whether the field asks for something; of log probabilities 0 does: those of the tokens alone."""
    if name in {"logprobs", "prompt_logprobs"} and value is not False:
        return value is not None
    return value not in (None, False, 0, "", [], {})


def _has_media(body: Json) -> bool:
    return any(
        isinstance(part, dict) and part.get("type") != "text"
        for message in body.get("messages") or ()
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for part in message["content"]
    )


def plan(
    prepared: Prepared, delivered: Delivered, *, whole: bool = False
) -> Next | Ending | Refusal:
    """How the answer goes on, given what the client has. `whole`: replay from the beginning."""
    delivered.settle()
    if delivered.unreadable:
        return Refusal("its engine sent what is no chunk")
    if not delivered.substance:
        return _again(prepared, Class.RESTART, delivered)
    if prepared.kind in {Class.REFUSED, Class.RESTART}:
        return Refusal(prepared.reason)
    if delivered.tokens > MAX_TOKENS:
        return Refusal(f"an answer of more than {MAX_TOKENS} tokens is not kept")
    if delivered.finished(prepared.choices) and (end := _ending(prepared, delivered)) is not None:
        return end
    if prepared.kind is Class.TOKEN and delivered.plain and not whole:
        return _by_token(prepared, delivered)
    return _again(prepared, Class.REPLAY, delivered)


def _again(prepared: Prepared, kind: Class, delivered: Delivered) -> Next:
    return Next(
        kind=kind,
        path=prepared.endpoint.value,
        body=prepared.body,
        expect={index: choice.everything() for index, choice in delivered.choices.items()},
        base_tokens=0,
        needs_max_tokens=False,
        prompt_tokens=_prompt_tokens(prepared, delivered) or 0,
    )


def _ending(prepared: Prepared, delivered: Delivered) -> Ending | None:
    """After the last finish_reason only usage and [DONE] can be missing, and we can write both.

    None when that takes an engine: it did not name the tokens, or tells which were reasoning.
    """
    if not prepared.include_usage or delivered.usage is not None:
        return Ending(chunks.DONE)
    prompt_tokens = _prompt_tokens(prepared, delivered)
    counted = all(choice.token_ids for choice in delivered.choices.values())
    if delivered.identity is None or prompt_tokens is None or not counted or prepared.parsed:
        return None
    delivered.usage = chunks.usage(prompt_tokens, delivered.tokens)
    usage = {"usage": delivered.usage}
    last = chunks.envelope(prepared.endpoint, delivered.identity, [], usage)
    return Ending(chunks.encode(last) + chunks.DONE)


def _prompt_tokens(prepared: Prepared, delivered: Delivered) -> int | None:
    """Over all prompts; None: the engine did not name each."""
    if prepared.prompts == 1:
        return None if delivered.prompt_ids is None else len(delivered.prompt_ids)
    named = _named_prompts(prepared, delivered)
    return sum(named) if len(named) == prepared.prompts else None


def _named_prompts(prepared: Prepared, delivered: Delivered) -> list[int]:
    """Tokens of each prompt that the engine named; choices of one prompt stand together."""
    of_one = prepared.choices // prepared.prompts
    return [
        len(choice.prompt_ids)
        for index, choice in delivered.choices.items()
        if index % of_one == 0 and choice.prompt_ids is not None
    ]


def counted(prepared: Prepared, delivered: Delivered) -> tuple[int | None, int | None]:
    """Tokens of prompts and answers for one that was not finished; None: none were named.

    Where the engine names no ids, each piece of the answer counts for one.
    """
    prompt_tokens, generated = delivered.counted()
    if generated is None:
        generated = delivered.pieces or None
    if prepared.prompts > 1:
        delivered.settle()
        prompt_tokens = sum(_named_prompts(prepared, delivered)) or None
    return prompt_tokens, generated


def _by_token(prepared: Prepared, delivered: Delivered) -> Next:
    """Prompt = prompt ids + generated ids up to the last clean point; the rest comes again.

    A stop string may straddle the cut, and the engine holds back text that may be the beginning
    of one. Starting early enough (`reach`) makes its state the same as that of the lost one.
    """
    body, had = prepared.body, delivered.only
    stops = body.get("stop") or []
    longest = max((len(s) for s in ([stops] if isinstance(stops, str) else stops)), default=0)
    reach = max(longest - 1, 0)
    held = 0 if body.get("include_stop_str_in_output") else reach
    mark = had.mark(reach=reach)
    if mark.tokens == 0:
        held = 0
    assert delivered.prompt_ids is not None
    sent: Json = {name: body[name] for name in _COPIED if body.get(name) is not None}
    sent["prompt"] = [*delivered.prompt_ids, *had.token_ids[: mark.tokens]]
    sent |= {"stream": True, "return_token_ids": True}
    limit = max_tokens(prepared)
    if limit is not None:
        sent["max_tokens"] = limit - mark.tokens
    if body.get("min_tokens"):
        sent["min_tokens"] = max(0, body["min_tokens"] - mark.tokens)
    expect: dict[Channel, Part] = {
        IDS: tuple(had.token_ids[mark.tokens :]),
        TEXT: had.text_from(mark.chars + held),
    }
    return Next(
        kind=Class.TOKEN,
        path=Endpoint.COMPLETION.value,
        body=sent,
        expect={0: {channel: part for channel, part in expect.items() if part}},
        base_tokens=mark.tokens,
        needs_max_tokens=limit is None,
        prompt_tokens=len(sent["prompt"]),
    )


def max_tokens(prepared: Prepared) -> int | None:
    """The client's limit of generated tokens; None: as far as the context goes."""
    return _limit(prepared.endpoint, prepared.body)


def _limit(endpoint: Endpoint, body: Json) -> int | None:
    if endpoint is Endpoint.COMPLETION:
        limit = body.get("max_tokens")
        return 16 if limit is None else int(limit)  # vLLM's and OpenAI's default
    limit = body.get("max_completion_tokens")
    limit = body.get("max_tokens") if limit is None else limit
    return None if limit is None else int(limit)


def with_max_tokens(request: Next, max_model_len: int) -> Json:
    """The body with the context that is left as its limit, where none was given."""
    if not request.needs_max_tokens:
        return request.body
    return request.body | {"max_tokens": max(1, max_model_len - len(request.body["prompt"]))}
