"""What one answer took: filled in while it runs, read at its end by whoever keeps the books."""

from __future__ import annotations

from dataclasses import dataclass

from spotinference.core.continuation import Class


@dataclass(slots=True)
class Account:
    kind: Class
    """how the answer would be continued, or was"""
    prompt_tokens: int | None = None
    """of the client's request, once, however many replicas worked on it; None: not known"""
    completion_tokens: int | None = None
    """of the whole answer, each counted once"""
    cached_tokens: int | None = None
    """of the prompt's, those that the first engine had in its cache; None: it does not tell"""
    replayed_tokens: int = 0
    """generated again after a loss, to be verified: an interruption's cost, not the client's"""
    replayed_prompt_tokens: int = 0
    """processed again as a prompt after a loss: likewise"""
    continuations: int = 0
    """losses that the answer survived after its first token"""
    attempts: int = 0
    """requests that engines were sent"""
    first_token_at: float | None = None
    """monotonic; the first bytes of the answer"""
    replica: str | None = None
    """the last that gave anything"""

    def use(self, usage: object) -> None:
        """Takes over what the engine itself counted, in the words of either API; what is no count
        counts nothing.
        """
        if not isinstance(usage, dict):
            return
        prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
        self.prompt_tokens = _count(prompt) or 0
        completion = usage.get("completion_tokens", usage.get("output_tokens"))
        self.completion_tokens = _count(completion) or 0
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        if self.cached_tokens is None and isinstance(details, dict):
            self.cached_tokens = _count(details.get("cached_tokens"))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
