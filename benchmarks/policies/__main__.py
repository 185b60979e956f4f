"""Every policy beside what others published, on the public traces: tables, verdicts and plots.

    python -m benchmarks.policies [spot autoscale …] [--traces DIR] [--out DIR] [--json]

One module per section: `measure(traces, out)` returns a `Report`, or None with a sentence printed
where its traces are absent. Deterministic: the seed is fixed and printed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

SECTIONS = {
    "spot": "benchmarks.policies.spot",
    "autoscale": "benchmarks.policies.autoscale",
    "whole": "benchmarks.policies.whole",
}
TRACES = Path("../shared/traces")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--traces", type=Path, default=TRACES, help="folder with spot/, workload/")
    parser.add_argument("--out", type=Path, default=Path("build/policies"), help="for the plots")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.traces.is_dir():
        print(f"no traces in {options.traces}: the policies are not measured (--traces names them)")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in options.sections or SECTIONS:
        if name not in SECTIONS:
            parser.error(f"{name}: there is {', '.join(SECTIONS)}")
        report = importlib.import_module(SECTIONS[name]).measure(options.traces, options.out)
        if report is not None:
            failed |= report.print(as_json=options.json)
    sys.exit(failed)


if __name__ == "__main__":
    main()
