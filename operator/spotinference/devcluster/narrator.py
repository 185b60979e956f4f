"""Tells a story in a terminal: chapters, ticking waits, streamed text. Plain lines when not a TTY."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

TEXT_WIDTH = 84


class Wait:
    """A wait under way; `say` replaces its line."""

    def __init__(self, narrator: Narrator, what: str) -> None:
        self._narrator = narrator
        self._what = what
        self._began_at = time.monotonic()
        self._said = what
        self.detail = ""

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began_at

    def say(self, text: str) -> None:
        """Shown at once; without a terminal only when it differs from what was said before."""
        if text != self._said:
            self._said = text
            self._narrator.tick(text, self.elapsed_s)

    @property
    def line(self) -> str:
        return f"{self._said} [dim]{self.elapsed_s:4.0f} s[/dim]"


class Narrator:
    """Writes to stdout. Everything that takes longer than two seconds shows that it moves."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal
        self._column = 0
        self._fresh = False
        self._chapter = 0

    def title(self, text: str) -> None:
        self.console.print(f"\n[bold]{escape(text)}[/bold]")

    def chapter(self, text: str) -> None:
        self._chapter += 1
        self.console.print(f"\n[bold cyan]{self._chapter}  {escape(text)}[/bold cyan]")

    def done(self, text: str) -> None:
        self.console.print(f"   [green]✓[/green] {text}")

    def note(self, text: str) -> None:
        self.console.print(f"   {text}")

    def block(self, text: str) -> None:
        for line in text.rstrip().splitlines():
            self.console.print(f"     [dim]{escape(line)}[/dim]")

    def failed(self, text: str) -> None:
        self.console.print(f"   [bold red]✗ {escape(text)}[/bold red]")

    def tick(self, text: str, elapsed_s: float) -> None:
        if not self.live:
            self.console.print(f"   … {text} ({elapsed_s:.0f} s)")

    @contextmanager
    def waiting(self, what: str) -> Iterator[Wait]:
        """A spinner with the seconds that passed, until the block ends."""
        wait = Wait(self, what)
        if not self.live:
            self.console.print(f"   … {what}")
            yield wait
            return
        with self.console.status("", spinner="dots") as status:
            status.update(_Ticking(wait))
            yield wait

    # --- streamed text ---------------------------------------------------------------------------

    def open_text(self) -> None:
        self._column = 0
        self._write("\n     ")

    def text(self, piece: str, style: str = "") -> None:
        """Streams a piece of an answer, broken at spaces near the right margin."""
        if self._fresh and piece:
            self._write("     ")
            self._fresh = False
        for word in _words(piece):
            full = self._column + len(word) > TEXT_WIDTH and word.startswith(" ")
            if word == "\n" or full:
                self._write("\n     ")
                self._column = 0
                word = word.lstrip()  # noqa: PLW2901  # a line does not begin with a space
            self._write(word, style)
            self._column += len(word)

    def interjection(self, text: str) -> None:
        """A line of ours in the middle of a streamed text."""
        self._write("\n")
        self.console.print(f"   [bold yellow]⚡ {escape(text)}[/bold yellow]")
        self._column = 0
        self._fresh = True

    def close_text(self) -> None:
        self._write("\n\n")

    def _write(self, text: str, style: str = "") -> None:
        self.console.print(text, end="", style=style, markup=False)
        sys.stdout.flush()


class _Ticking:
    """Renders a wait anew at each refresh of the spinner, so that the seconds move."""

    def __init__(self, wait: Wait) -> None:
        self._wait = wait

    def __rich__(self) -> str:
        return self._wait.line


def _words(text: str) -> Iterator[str]:
    """Words with the space before them; newlines alone."""
    word = ""
    for character in text:
        if character == "\n":
            if word:
                yield word
            yield "\n"
            word = ""
        elif character == " " and word:
            yield word
            word = " "
        else:
            word += character
    if word:
        yield word
