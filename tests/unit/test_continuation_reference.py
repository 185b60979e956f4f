"""docs/reference/continuation.md shows the matrix that the tests prove, with the code's classes."""

from __future__ import annotations

import os
from pathlib import Path

from tests.gateway.test_continuation_matrix import CUTS, LOSSES
from tests.support.continuation import KINDS, LIMITS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "continuation.md"
HEAD = """# The continuation matrix

How the answer to each kind of streamed request survives the loss of its replica, and that the
client hears it as if nothing had happened: same text, reasoning, tool calls, log probabilities,
finish, usage, one id, one `[DONE]`. Each row is proven on the small engine at every cut by every
loss (`tests/gateway/test_continuation_matrix.py`), and on the real vLLM by lost connections
(`tests/engine/test_continuation.py`): early and in the middle, and for reasoning and tool calls
within each of their parts. Held to the code by a test; `UPDATE_GOLDEN=1 make unit` writes
it anew.

- **token**: prompt ids and generated ids go to another replica as a token prompt; costs a prefill.
- **replay**: the request is sent again (with a seed, injected where the client gave none); what was
  delivered is compared per channel and dropped; costs the decoding again.
- **restart**: nothing was sent before the answer is whole, so the request is sent again.
- **refused**: an error event `not_continuable` and an aborted connection, never a normal end.

"""


def rendered() -> str:
    losses = ", ".join([*LOSSES, "three losses in one answer"])
    rows = [
        f"| {kind.name} | {kind.expected.value} | " + " | ".join("same" for _ in CUTS) + " |\n"
        for kind in KINDS
    ]
    limits = "".join(
        f"- {limit.kind}: {limit.why} Proven by `{limit.test}`, on the real vLLM by `{limit.real}`.\n"
        for limit in LIMITS
    )
    return (
        f"{HEAD}Losses, each at each cut: {losses}.\n\n"
        f"| request | class | {' | '.join(CUTS)} |\n|---|---|{'---|' * len(CUTS)}\n"
        + "".join(rows)
        + f"\n## What is refused\n\n{limits}"
    )


def test_the_page_shows_the_matrix() -> None:
    if os.environ.get("UPDATE_GOLDEN") == "1":
        PAGE.write_text(rendered())
    assert PAGE.read_text() == rendered()


def test_every_limit_has_its_test() -> None:
    root = Path(__file__).parents[1]
    for limit in LIMITS:
        for test in (limit.test, limit.real):
            file, _, name = test.partition("::")
            assert f"def {name}(" in (root / file).read_text(), test
