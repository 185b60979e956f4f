"""Which replica gets a request: the least outstanding work, or the one that knows the prompt.

Work is counted in tokens, estimated when the request arrives. A request whose prompt is long
enough that a cached prefix pays (or that names its session) has an *affinity*: rendezvous hashing
orders the replicas for it, the same order in every gateway, and the first of them that is not
overloaded takes it. "Overloaded" is consistent hashing with bounded loads (Mirrokni, Thorup,
Zadimoghaddam 2017): more than `FACTOR` times the mean, where a little work everywhere is not yet
load. A new replica takes over about 1/n of the prompts, a lost one gives away only its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from spotinference.api.kinds import Json

FACTOR = 1.25
"""Of the mean outstanding work; the paper's trade between balance and keys that move."""
SLACK_TOKENS = 8192
"""Work below this never sends a request away from its cached prefix: a batch of a few requests
costs less than the prefill of a long prompt."""
STICKY_PROMPT_TOKENS = 256
"""Shorter prompts are prefilled in milliseconds: for them balance is worth more than a cache."""
BYTES_PER_TOKEN = 4
"""English text in the vocabularies of today; an estimate is all that is needed."""
MARK_TOKENS = 4
"""The chat template's marks around a message."""
PART_TOKENS = 1024
"""What an image or a sound counts for."""
USUAL_ANSWER_TOKENS = 256
"""Until a tier's answers have been measured."""
PREFIX_CHARS = STICKY_PROMPT_TOKENS * BYTES_PER_TOKEN
"""So much of a prompt's (or of an opening message's) beginning makes its affinity."""
OPENING_MESSAGES = 8
"""A conversation's affinity is made of at most so many."""
MAX_SESSION_CHARS = 256

_PROMPTS = ("messages", "prompt", "input", "documents", "text_2")
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_MASK = (1 << 64) - 1


class Work(NamedTuple):
    """What a request will ask of a replica, as far as it can be told on arrival."""

    prompt_tokens: int
    max_tokens: int | None
    """of all its choices together; None: the client set no limit"""
    key: int
    """64 bits; sticky requests that begin alike have the same in every process"""
    sticky: bool
    """worth sending where its prefix is cached"""
    choices: int = 1
    """answers that it asks for"""

    def tokens(self, usual_answer_tokens: int = USUAL_ANSWER_TOKENS) -> int:
        """Prompt and expected answer."""
        return self.prompt_tokens + self.answer_tokens(usual_answer_tokens)

    def answer_tokens(self, usual: int = USUAL_ANSWER_TOKENS) -> int:
        return usual if self.max_tokens is None else min(self.max_tokens, usual)


def work_of(body: Json, session: str | None = None) -> Work:
    """The work in a request, whatever its endpoint; `session` is the client's own name
    for what belongs together and goes before the prompt's beginning.
    """
    asked = _first(body, _PROMPTS)
    if isinstance(asked, list) and asked and isinstance(asked[0], dict):
        tokens, prefix = _of_messages(asked)
    else:
        tokens, prefix = _of_prompt(asked)
    limit = _first(body, _LIMITS)
    n = body.get("n")
    choices = (n if isinstance(n, int) and n > 0 else 1) * _prompts(asked)
    if session:
        prefix = "session " + session[:MAX_SESSION_CHARS]
    sticky = bool(session) or tokens >= STICKY_PROMPT_TOKENS
    return Work(
        prompt_tokens=max(1, tokens),
        max_tokens=limit * choices if isinstance(limit, int) else None,
        key=seed(prefix) if sticky else hash(prefix) & _MASK,  # which only tells equals apart
        sticky=sticky,
        choices=choices,
    )


def _prompts(asked: object) -> int:
    """A completion may ask for several at once; a list of ids is one."""
    if isinstance(asked, list) and asked and isinstance(asked[0], str | list):
        return len(asked)
    return 1


def _first(body: Json, names: tuple[str, ...]) -> object:
    for name in names:
        if (value := body.get(name)) is not None:
            return value
    return None


def seed(text: str) -> int:
    """64 bits of a text; the same in every process."""
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def choose(loads: Sequence[int], seeds: Sequence[int], *, key: int, sticky: bool) -> int:
    """The index of the replica that gets the work; `loads` and `seeds` are theirs, at least one.

    Deterministic. Sticky: the first in the key's order whose load is within the bound, which the
    least loaded always is. Else: the least loaded, equals in the key's order.
    """
    if not sticky:
        lowest = min(loads)
        return max(
            (i for i, load in enumerate(loads) if load == lowest),
            key=lambda i: _score(key, seeds[i]),
        )
    limit = bound(loads)
    return max(
        (i for i, load in enumerate(loads) if load <= limit), key=lambda i: _score(key, seeds[i])
    )


def bound(loads: Sequence[int]) -> float:
    """The most outstanding work a replica may have to be given a sticky request."""
    return max(SLACK_TOKENS, FACTOR * sum(loads) / len(loads))


def _score(key: int, of: int) -> int:
    """Rendezvous weight of one replica for one key (the finaliser of splitmix64)."""
    x = (key ^ of) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _of_messages(messages: list[object]) -> tuple[int, str]:
    """Estimated tokens, and what a conversation keeps over its turns: all up to and with the
    first message of the user.
    """
    tokens = 0
    prefix: list[str] = []
    opening = True
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            continue
        size, texts = _of_content(message.get("content"))
        tokens += size + MARK_TOKENS
        if opening:
            role = str(message.get("role"))
            prefix += [role, *texts]
            opening = role != "user" and index + 1 < OPENING_MESSAGES
    return tokens, "\n".join(prefix)


def _of_content(content: object) -> tuple[int, list[str]]:
    if isinstance(content, str):
        return _tokens(content), [content[:PREFIX_CHARS]]
    tokens, texts = 0, []
    for part in content if isinstance(content, list) else ():
        text = part.get("text") if isinstance(part, dict) else None
        if isinstance(text, str):
            tokens += _tokens(text)
            texts.append(text[:PREFIX_CHARS])
        else:
            tokens += PART_TOKENS
    return tokens, texts


def _of_prompt(prompt: object) -> tuple[int, str]:
    if isinstance(prompt, str):
        return _tokens(prompt), prompt[:PREFIX_CHARS]
    if not isinstance(prompt, list) or not prompt:
        return 0, ""
    if isinstance(prompt[0], int):
        return len(prompt), ",".join(map(str, prompt[: PREFIX_CHARS // BYTES_PER_TOKEN]))
    each = [_of_prompt(one) for one in prompt if isinstance(one, str | list)]
    return sum(tokens for tokens, _ in each), each[0][1] if each else ""


def _tokens(text: str) -> int:
    return len(text) // BYTES_PER_TOKEN
