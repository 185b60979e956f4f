"""Structured logs: JSON lines in a pod, readable lines on a terminal. Never prompts, never keys."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import PurePath

import structlog

MAX_FRAMES = 12


def setup(*, level: str = "info", json_lines: bool | None = None) -> None:
    """Once per process. `json_lines` None: JSON unless stderr is a terminal."""
    as_json = json_lines if json_lines is not None else not sys.stderr.isatty()
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(number, logging.WARNING), stream=sys.stderr, format="%(message)s")


def where(error: BaseException) -> str:
    """What kind of error and where, innermost first; not its text, which may quote a prompt."""
    frames = reversed(traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:])
    shown = (f"{PurePath(f.filename).name}:{f.lineno} {f.name}" for f in frames)
    return f"{type(error).__name__} at {' < '.join(shown)}"
