"""A process that writes usage records for ever: test_usage kills it in the middle.

Each line on stderr is a number whose record, and all before it, is on the disk.
"""

from __future__ import annotations

import sys
from pathlib import Path

from spotinference.gateway.spool import Spool


def main() -> None:
    spool = Spool(Path(sys.argv[1]), "writer", 1 << 30)
    start = int(sys.argv[2])
    for number in range(start, start + 1_000_000):
        spool.append(b'{"number": %d, "padding": "%s"}\n' % (number, b"x" * (number % 5000)))
        sys.stderr.write(f"{number}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    main()
