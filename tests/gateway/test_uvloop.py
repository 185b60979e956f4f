"""The gateway runs on uvloop: what depends on the loop's transports is tried on it as well."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from tests.gateway import test_failover, test_sdk, test_surface, test_waking
from tests.support.gateway import CHAT

Case = Callable[[], Coroutine[Any, Any, None]]


async def parked() -> None:
    await test_failover.test_without_another_replica_the_stream_is_parked_and_goes_on(
        CHAT, test_failover.GREEDY
    )


async def closed_mid_line() -> None:
    await test_failover.test_a_stream_survives_every_kind_of_loss(
        "fin_mid_line", test_failover.SEEDED
    )


async def too_many() -> None:
    await test_surface.test_connections_beyond_the_cap_are_closed()


async def silent_node() -> None:
    await test_failover.test_a_replica_that_leaves_the_cluster_silently_is_left_at_once()


CASES: list[Case] = [
    parked,
    closed_mid_line,
    too_many,
    silent_node,
    test_failover.test_a_silent_replica_is_lost_after_the_deadline,
    test_waking.test_the_cap_ends_a_stream_with_an_event_and_an_aborted_connection,
    test_waking.test_a_client_that_leaves_mid_stream_stops_the_engine_within_a_second,
    test_waking.test_the_last_client_that_leaves_calls_the_wake_off,
    test_surface.test_sigterm_lets_answers_end_and_cuts_those_that_do_not_with_an_event,
    test_surface.test_a_slow_head_and_a_slow_body_are_cut_off,
    test_sdk.test_a_cut_that_cannot_be_continued_is_an_exception_not_an_end,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_on_the_products_own_event_loop(case: Case) -> None:
    uvloop.run(case())
