"""When Python looks for cyclic garbage: in quiet moments, not while many nodes go at once.

What is known of the cluster are some hundred thousand objects without cycles. A full collection walks
through all of them (0.1 to 0.2 s with a thousand nodes, in which nothing is decided or sent), and Python
begins one when much is allocated: when fifty nodes get a notice.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

THRESHOLDS = (10_000, 50, 1_000_000)
"""Python's own are (700, 10, 10): made for programs with few live objects. The last one says: never."""
EVERY_S = 600.0
PATIENCE_S = 60.0
"""An operator that is never idle so long collects all the same."""
LOOK_S = 0.5


async def collect(idle: Callable[[], bool]) -> None:
    """Until cancelled: full collections every ten minutes, when nothing is to be done if possible."""
    gc.set_threshold(*THRESHOLDS)
    while True:
        await asyncio.sleep(EVERY_S)
        waited_s = 0.0
        while not idle() and waited_s < PATIENCE_S:
            await asyncio.sleep(LOOK_S)
            waited_s += LOOK_S
        gc.collect()
