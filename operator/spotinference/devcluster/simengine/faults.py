"""What goes wrong on purpose: set by `POST /_sim/faults` or SPOTINFERENCE_SIM_FAULTS (JSON).

    {"mode": "rst", "after_chunks": 7}            of the next streams, each dies after 7 chunks
    {"mode": "status", "status": 503, "times": 2} the next two requests are refused
    {"metrics": "nan"}                            /metrics lies until told otherwise

The chunks counted are those with tokens; a role chunk does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from spotinference import errors

Mode = Literal[
    "none",
    # before the headers
    "status",  # answers `status` with `body`
    "hang_headers",  # never answers
    "refuse",  # resets the connection before any answer
    "content_type",  # 200 with HTML
    "redirect",  # 302 to a metadata address
    # in the stream, after `after_chunks`
    "rst",  # TCP reset
    "fin",  # connection closed without the end of the body
    "fin_mid_line",  # the same in the middle of a chunk's JSON
    "clean_no_done",  # the body ends well-formed, without finish_reason and [DONE]
    "done_no_finish",  # [DONE] without a finish_reason
    "error_event",  # an error event and [DONE], as vLLM answers when its core dies
    "hang_stream",  # silence, connection open
    "garbage",  # a line that is no JSON
    "huge_line",  # a line of `size` bytes
    "bad_utf8",  # a line that is no UTF-8
    "sigkill",  # the whole process
    "rst_all",  # every connection of this engine, and it listens no more
]
MetricsMode = Literal[
    "", "nan", "negative", "inf", "missing", "garbage", "hang", "huge", "status", "reset"
]
DEFAULT_HUGE_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Fault:
    """One plan; `times` is how many requests it still hits (None: all)."""

    mode: Mode = "none"
    after_chunks: int = 0
    status: int = 500
    body: str = '{"error":{"message":"simulated","type":"InternalServerError","code":500}}'
    size: int = DEFAULT_HUGE_BYTES
    times: int | None = None
    metrics: MetricsMode = ""
    slice_bytes: int = 0
    """When > 0, every chunk is written in pieces of this size."""
    health: int = 200
    """Status of /health."""


class Faults:
    """The plan in force; `take` uses it up."""

    def __init__(self, plan: Fault | None = None) -> None:
        self.plan = plan or Fault()

    def take(self) -> Fault:
        """The fault that hits this request."""
        plan = self.plan
        if plan.mode == "none" or plan.times is None:
            return plan
        if plan.times <= 0:
            return replace(plan, mode="none")
        self.plan = replace(plan, times=plan.times - 1)
        return plan


def parse(body: Mapping[str, object]) -> Fault:
    """A plan from JSON; ConfigInvalid names the field that is wrong."""
    fields = {name: body[name] for name in body}
    unknown = set(fields) - set(Fault.__dataclass_fields__)
    if unknown:
        raise errors.ConfigInvalid(f"faults: unknown fields {sorted(unknown)}")
    plan = Fault(**fields)  # type: ignore[arg-type]
    if plan.mode not in get_args(Mode):
        raise errors.ConfigInvalid(f"faults.mode: {plan.mode!r}; one of {get_args(Mode)}")
    if plan.metrics not in get_args(MetricsMode):
        raise errors.ConfigInvalid(f"faults.metrics: {plan.metrics!r}")
    return plan
