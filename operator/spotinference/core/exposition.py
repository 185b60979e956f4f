"""Metrics of several processes as one page, each sample with the label of its process.

A label and not a sum: when a process dies its counters start anew, and a sum that shrinks would
be read as a restart of the whole. Whoever wants sums writes `sum without (worker)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{?)")


def merged(pages: Mapping[str, str]) -> str:
    """`pages`: process → its page in Prometheus' text format. A family's HELP and TYPE come once."""
    families: dict[str, list[str]] = {}
    for process, page in pages.items():
        known = set(families)
        family: list[str] = []
        for line in page.splitlines():
            if line.startswith("# "):
                name = line.split(" ", 3)[2]
                family = families.setdefault(name, [])
                if name not in known:
                    family.append(line)
            elif line:
                family.append(_labelled(line, process))
    return "".join(f"{line}\n" for family in families.values() for line in family)


def _labelled(sample: str, process: str) -> str:
    match = _SAMPLE.match(sample)
    if match is None:
        return sample
    rest = sample[match.end() :]
    comma = "," if match.group(2) and not rest.startswith("}") else ""
    return f'{match.group(1)}{{worker="{process}"{comma}{rest if match.group(2) else "}" + rest}'
