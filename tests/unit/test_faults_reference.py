"""docs/reference/faults.md names every row and the tests that prove it, and no other."""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path

from tests.support.faults import ROWS, proofs

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "faults.md"
HEAD = """# Faults that are survived

What goes wrong, what is seen of it from outside, and the tests that prove it (below `tests/`).
Held to the tests by a test; `UPDATE_GOLDEN=1 make unit` writes it anew.

| row | what goes wrong | what is seen | tests |
|---|---|---|---|
"""


def rendered() -> str:
    shown = []
    by_row = {row: list(found) for row, found in groupby(proofs(), key=lambda proof: proof.row)}
    for number, row in sorted(ROWS.items()):
        tests = "<br>".join(
            f"`{file}`: " + ", ".join(f"`{proof.name}`" for proof in found)
            for file, found in groupby(by_row.get(number, []), key=lambda proof: proof.file)
        )
        shown.append(f"| {number} | {row.fault} | {row.verdict} | {tests} |\n")
    return HEAD + "".join(shown)


def test_every_row_has_a_test_and_every_mark_a_row() -> None:
    assert {proof.row for proof in proofs()} == set(ROWS)


def test_the_page_shows_the_marks() -> None:
    if os.environ.get("UPDATE_GOLDEN") == "1":
        PAGE.write_text(rendered())
    assert PAGE.read_text() == rendered()
