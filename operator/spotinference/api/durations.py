"""Durations as users write them in specs: `90s`, `8m`, `1h30m`, `500ms`."""

from __future__ import annotations

import re

PATTERN = r"^([0-9]{1,6}(ms|s|m|h))+$"
_PART = re.compile(r"([0-9]{1,6})(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """Seconds of a duration; ValueError when it is not one."""
    if not re.fullmatch(PATTERN, text):
        raise ValueError(f"{text!r} is not a duration such as 90s, 8m or 1h30m")
    return sum(int(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
