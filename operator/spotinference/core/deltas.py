"""What one choice of a chunk adds, channel by channel: taken apart, and with its beginning cut off.

A client reads an answer as several growing sequences: the text, the reasoning, the name and the
arguments of each tool call, the token ids, the log probabilities. How an engine divides them into
chunks is chance (it merges tokens when its reader is slow), so what comes again after a loss is
compared and dropped per channel, never per chunk.

The channel of a sequence is a tuple: `("text",)`, `("ids",)`, `("logprobs",)`, `("reasoning",)` or
another string field of a chat delta by its name, `("tool", index, "name" | "arguments")`, and
`("other", field)` for values that are neither text nor known here.
"""

from __future__ import annotations

from collections.abc import Mapping

from spotinference.api.kinds import Json
from spotinference.core.chunks import Endpoint

Channel = tuple[str | int, ...]
Part = str | tuple[object, ...]
"""What is added to one channel: text, or items (ids, tokens with log probabilities, values)."""

TEXT: Channel = ("text",)
IDS: Channel = ("ids",)
LOGPROBS: Channel = ("logprobs",)


def parts(endpoint: Endpoint, choice: Json) -> dict[Channel, Part]:
    """What the choice adds to each channel; channels to which it adds nothing are left out.

    Ids of tool calls are no channel: engines draw them at random, so a repeated one differs.
    Of log probabilities the tokens count, not the numbers, whose last bits depend on the batch.
    """
    found: dict[Channel, Part] = {}
    if ids := choice.get("token_ids"):
        found[IDS] = tuple(ids)
    if tokens := _logprob_tokens(choice.get("logprobs")):
        found[LOGPROBS] = tokens
    if endpoint is Endpoint.COMPLETION:
        if text := choice.get("text"):
            found[TEXT] = text
        return found
    for key, value in (choice.get("delta") or {}).items():
        if key == "role" or not value:
            continue
        if key == "content":
            found[TEXT] = value
        elif key == "tool_calls":
            found |= _tool_parts(value)
        elif isinstance(value, str):
            found[(key,)] = value
        else:
            found["other", key] = (value,)
    return found


def _tool_parts(calls: list[Json]) -> dict[Channel, Part]:
    found: dict[Channel, Part] = {}
    for call in calls:
        function = call.get("function") or {}
        for field in ("name", "arguments"):
            if value := function.get(field):
                channel = ("tool", int(call.get("index") or 0), field)
                found[channel] = str(found.get(channel, "")) + value
    return found


def _logprob_tokens(logprobs: Json | None) -> tuple[object, ...]:
    """Chat has one entry per token, completions parallel lists."""
    if not logprobs:
        return ()
    if (tokens := logprobs.get("tokens")) is not None:
        return tuple(tokens)
    return tuple(entry.get("token") for entry in logprobs.get("content") or ())


def without(endpoint: Endpoint, choice: Json, cut: Mapping[Channel, int]) -> Json:
    """The choice less so many characters or items at the beginning of each channel."""
    left = dict(choice)
    if (drop := cut.get(IDS)) and choice.get("token_ids"):
        left["token_ids"] = choice["token_ids"][drop:]
    if (drop := cut.get(LOGPROBS)) and choice.get("logprobs"):
        left["logprobs"] = {
            key: value[drop:] if isinstance(value, list) else value
            for key, value in choice["logprobs"].items()
        }
    if endpoint is Endpoint.COMPLETION:
        if drop := cut.get(TEXT):
            left["text"] = choice["text"][drop:]
        return left
    delta: Json = {}
    for key, value in (choice.get("delta") or {}).items():
        if key == "content":
            delta[key] = value[cut.get(TEXT, 0) :] if value else value
        elif key == "tool_calls":
            if calls := _calls_without(value, dict(cut)):
                delta[key] = calls
        elif not (drop := cut.get((key,), 0) or cut.get(("other", key), 0)):
            delta[key] = value
        elif isinstance(value, str) and value[drop:]:
            delta[key] = value[drop:]
    left["delta"] = delta
    return left


def _calls_without(calls: list[Json], cut: dict[Channel, int]) -> list[Json]:
    """The tool calls of a delta less what is cut; a call whose name went loses its id as well."""
    kept: list[Json] = []
    for call in calls:
        function = dict(call.get("function") or {})
        touched: set[str] = set()
        for field in ("name", "arguments"):
            channel: Channel = ("tool", int(call.get("index") or 0), field)
            value = function.get(field)
            if value and (drop := min(cut.get(channel, 0), len(value))):
                cut[channel] -= drop  # one call may stand in several entries of one delta
                touched.add(field)
                function[field] = value[drop:]
        if not touched:
            kept.append(call)
        elif function := {key: value for key, value in function.items() if value}:
            gone = {"id", "type"} if "name" in touched else set()
            kept.append({k: v for k, v in call.items() if k not in gone} | {"function": function})
    return kept
