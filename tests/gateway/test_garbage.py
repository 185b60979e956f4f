"""Requests leave nothing to the cyclic collector: among 1,000 streams its pauses delay every token."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

from tests.support.gateway import CHAT, bench, chat, stream

REQUESTS = 5
_SAMPLED: dict[str, Any] = {}
_GREEDY: dict[str, Any] = {"temperature": 0}
OURS = ("spotinference.gateway", "spotinference.core", "spotinference.clients.engine_")


async def test_what_a_request_made_goes_with_it() -> None:
    async with bench() as b, b.http() as http:
        await b.tier("demo")
        await b.replica()

        async def ask() -> None:
            for _ in range(REQUESTS):
                assert (await stream(http, CHAT, chat(max_tokens=3))).done == 1
                for more in _SAMPLED, _GREEDY:  # fetched whole, and gathered
                    async with http.post(CHAT, json=chat(max_tokens=3, **more)) as response:
                        assert response.status == 200
                        await response.read()

        await ask()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await ask()
            gc.collect()
            left = Counter(type(item).__qualname__ for item in gc.garbage if _is_ours(item))
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not left


def _is_ours(item: object) -> bool:
    return type(item).__module__.startswith(OURS)
