"""Progress of long steps: bars and spinners with elapsed time, plain lines when not a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import rich.progress
from rich.console import Console

PLAIN_EVERY_S = 15.0
"""Without a terminal a step says that it lives this often."""


class Task:
    """One step; `total` None: a spinner."""

    def __init__(self, shown: rich.progress.Progress, name: str, total: float | None) -> None:
        self._shown = shown
        self._name = name
        self._id = shown.add_task(name, total=total, note="")
        self._live = shown.console.is_terminal
        self._began_at = self._said_at = time.monotonic()
        self._done: float = 0
        self.total = total
        if not self._live:
            shown.console.print(f"{name} …")

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began_at

    def expect(self, total: float) -> None:
        self.total = total
        self._shown.update(self._id, total=total)

    def advance(self, amount: float = 1) -> None:
        self._done += amount
        self._shown.update(self._id, advance=amount)
        self._plain("")

    def say(self, note: str) -> None:
        """What it is at; shown beside the bar."""
        self._shown.update(self._id, note=note)
        self._plain(note)

    def finish(self) -> None:
        self._shown.update(self._id, total=self.total or 1, completed=self.total or 1, note="")
        if not self._live:
            self._shown.console.print(f"{self._name}: done in {self.elapsed_s:.1f} s")

    def _plain(self, note: str) -> None:
        now = time.monotonic()
        if self._live or now - self._said_at < PLAIN_EVERY_S:
            return
        self._said_at = now
        share = f" {100 * self._done / self.total:.0f} %" if self.total else ""
        rest = f" ({note})" if note else ""
        self._shown.console.print(f"{self._name}:{share} after {self.elapsed_s:.0f} s{rest}")


class Progress:
    """Shows the steps of one command on stderr, one line each."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._shown = rich.progress.Progress(
            rich.progress.SpinnerColumn(finished_text="✓"),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("[dim]{task.fields[note]}"),
            console=self._console,
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._shown.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._shown.stop()

    def note(self, text: str) -> None:
        self._console.print(text)

    @contextmanager
    def task(self, name: str, total: float | None = None) -> Iterator[Task]:
        """A step from here to the end of the block; marked as done only when it ends well."""
        task = Task(self._shown, name, total)
        yield task
        task.finish()
