"""A measuring client: one streamed answer, its text, the arrival of its chunks, what went wrong.

Used by the demo, the benchmarks and the cluster tests, beside the real OpenAI SDK: it keeps what
an SDK hides (comments, several roles or finishes, the moment of each chunk).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

REQUEST_TIMEOUT_S = 660.0


@dataclass(slots=True)
class Answer:
    """What one client saw. Times are seconds of the monotonic clock."""

    sent_at: float
    status: int = 0
    text: str = ""
    first_byte_at: float | None = None
    first_token_at: float | None = None
    ended_at: float | None = None
    chunk_times: list[float] = field(default_factory=list)
    roles: int = 0
    finishes: list[str] = field(default_factory=list)
    dones: int = 0
    usage: list[dict[str, int]] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    error: str | None = None

    @property
    def complete(self) -> bool:
        """Ended as a whole answer does: one finish, one [DONE], no error."""
        return self.error is None and self.dones == 1 and len(self.finishes) == 1

    @property
    def longest_stall_s(self) -> float:
        """The longest pause between two tokens."""
        pairs = zip(self.chunk_times, self.chunk_times[1:], strict=False)
        return max((b - a for a, b in pairs), default=0.0)


async def ask(
    session: aiohttp.ClientSession,
    base_url: str,
    key: str,
    model: str,
    *,
    prompt: str = "Tell me about spot machines.",
    max_tokens: int = 64,
    on_text: Callable[[str], None] | None = None,
    on_comment: Callable[[str], None] | None = None,
    **extra: Any,
) -> Answer:
    """Streams one chat completion to its end; never raises for what the server did."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream_options": {"include_usage": True},
    } | extra
    answer = Answer(sent_at=time.monotonic())
    try:
        async with session.post(
            f"{base_url}/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {key}"},
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
        ) as response:
            answer.status = response.status
            if response.status != 200:
                answer.error = (await response.text())[:500]
            else:
                await _read(response, answer, on_text, on_comment)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        # An error event before the connection broke says more than the broken connection.
        answer.error = answer.error or f"{type(error).__name__}: {error}"
    answer.ended_at = time.monotonic()
    return answer


async def _read(
    response: aiohttp.ClientResponse,
    answer: Answer,
    on_text: Callable[[str], None] | None,
    on_comment: Callable[[str], None] | None,
) -> None:
    async for raw in response.content:
        now = time.monotonic()
        answer.first_byte_at = answer.first_byte_at or now
        line = raw.decode().strip()
        if line.startswith(":") and on_comment is not None:
            on_comment(line[1:].strip())
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            answer.dones += 1
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            answer.error = json.dumps(chunk["error"])
            continue
        answer.ids.add(str(chunk.get("id")))
        if chunk.get("usage"):
            answer.usage.append(chunk["usage"])
        for choice in chunk.get("choices", []):
            delta = choice.get("delta", {})
            if delta.get("role"):
                answer.roles += 1
            if choice.get("finish_reason"):
                answer.finishes.append(choice["finish_reason"])
            if delta.get("content"):
                answer.text += delta["content"]
                answer.first_token_at = answer.first_token_at or now
                answer.chunk_times.append(now)
                if on_text is not None:
                    on_text(delta["content"])


def percentile(values: list[float], share: float) -> float:
    """Nearest-rank percentile, `share` in 0..1; NaN of an empty list."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]
