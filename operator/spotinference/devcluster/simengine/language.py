"""The next token: a hash of every token before it, the request's seed and how far it has come.

- Greedy: all tokens so far decide, however they are divided into prompt and output. So a prompt
  made of the old prompt and the old output continues exactly.
- Sampled: also the seed and the number of tokens *this request* has made. So the same request gives
  the same text again, and a continuation of it does not: the random generator starts anew.
- Penalties on the output and structured output look at the output alone, which a continuation
  presents as prompt: those do not continue exactly either, as in vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable

from spotinference.devcluster.simengine import tokenizer

_MASK = (1 << 64) - 1
_PRIME = 0x9E3779B97F4A7C15
_START = 0xCBF29CE484222325
_FIRST = tokenizer.FIRST_WORD
_CHOICES = tokenizer.FIRST_SPLIT - _FIRST
_SPLIT_CHANCE = 24
"""One token in so many is the first half of a character."""
_SPLITS = len(tokenizer.SPLIT)
_FIRST_SPLIT = tokenizer.FIRST_SPLIT


def extend(state: int, tokens: Iterable[int]) -> int:
    """The state after some more tokens; `extend(0, …)` starts."""
    state = state or _START
    for token in tokens:
        state = ((state ^ (token + 1)) * _PRIME + (state >> 29)) & _MASK
    return state


def _mix(value: int) -> int:
    value = ((value ^ (value >> 31)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Speaker:
    """Makes one request's tokens, one after the other."""

    __slots__ = ("_count", "_eos_mean", "_last", "_output_only", "_output_state", "_seed", "_state")

    def __init__(
        self,
        prompt: Iterable[int],
        *,
        seed: int | None,
        output_only: bool,
        eos_mean: int,
    ) -> None:
        tokens = list(prompt)
        self._state = extend(0, tokens)
        self._last = tokens[-1] if tokens else tokenizer.END
        self._seed = seed
        self._output_only = output_only
        self._output_state = 0
        self._count = 0
        self._eos_mean = eos_mean

    def next_token(self, *, may_end: bool) -> int:
        """The next token; `END` only when `may_end`."""
        draw = self._state
        if self._seed is not None:
            draw ^= _mix((self._seed * 0x2545F4914F6CDD1D + self._count * _PRIME) & _MASK)
        if self._output_only:
            draw ^= self._output_state
        draw = _mix(draw)
        token = self._choose(draw, may_end=may_end)
        self._state = extend(self._state, (token,))
        if self._output_only:
            self._output_state = extend(self._output_state, (token,))
        self._last = token
        self._count += 1
        return token

    def _choose(self, draw: int, *, may_end: bool) -> int:
        half = self._last - _FIRST_SPLIT
        if half >= 0 and half % 2 == 0:
            return self._last + 1  # the rest of the character
        if may_end and self._eos_mean and (draw >> 40) % self._eos_mean == 0:
            return tokenizer.END
        if (draw >> 20) % _SPLIT_CHANCE == 0:
            return _FIRST_SPLIT + 2 * (draw % _SPLITS)
        return _FIRST + draw % _CHOICES


class Recital:
    """Says a given text and ends, in place of a `Speaker`."""

    __slots__ = ("_left",)

    def __init__(self, tokens: Iterable[int]) -> None:
        self._left = iter(tokens)

    def next_token(self, *, may_end: bool) -> int:  # noqa: ARG002 - as a Speaker's
        """A grammar ends the answer where it must, whatever `may_end` says."""
        return next(self._left, tokenizer.END)
