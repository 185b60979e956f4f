"""The layers of the test suite: their order, their counts, and that none is left out unseen.

A layer is a folder below `tests/`. With `--all-layers` (what `make test` says) the run fails when
a layer has no test at all or when any test was skipped: a skip that nobody sees is a defect.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes is the machine's matter, not the code's.
settings.register_profile(
    "spotinference", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("spotinference")

pytest_plugins = ["tests.support.cluster", "tests.support.nodes"]

LAYERS = ("unit", "properties", "golden", "gateway", "chart", "cluster", "engine")
"""In the order in which they run: what fails fast comes first."""
_ROOT = Path(__file__).parent
_ALL_LAYERS = "--all-layers"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        _ALL_LAYERS,
        action="store_true",
        help="fail when a layer has no tests, or when a test was skipped",
    )


def layer_of(path: Path) -> str:
    """The folder below `tests/` that the file lies in."""
    parts = path.relative_to(_ROOT).parts
    return parts[0] if len(parts) > 1 else "(top)"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Random order within a layer (pytest-randomly shuffled already), layers in ours."""
    rank = {layer: number for number, layer in enumerate(LAYERS)}
    items.sort(key=lambda item: rank.get(layer_of(item.path), len(LAYERS)))


class LayerReport:
    """Counts outcomes and seconds per layer."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, report: pytest.TestReport) -> None:
        layer = layer_of(_ROOT.parent / report.location[0])
        self.seconds[layer] += report.duration
        if report.when == "call" or report.outcome != "passed":
            outcome = report.outcome if report.when == "call" or report.skipped else "error"
            self.outcomes[layer][outcome] += 1

    def complaints(self) -> list[str]:
        """Why a full run may not pass although no test failed."""
        found = [f"layer {name} ran no test" for name in LAYERS if not self.outcomes.get(name)]
        found += [
            f"layer {name} skipped {counts['skipped']} tests"
            for name, counts in self.outcomes.items()
            if counts["skipped"]
        ]
        return found


_KEY = pytest.StashKey[LayerReport]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_KEY] = LayerReport()
    config.pluginmanager.register(_Recorder(config.stash[_KEY]), "layer-recorder")


class _Recorder:
    def __init__(self, layers: LayerReport) -> None:
        self._layers = layers

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._layers.add(report)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    full = session.config.getoption(_ALL_LAYERS) and not session.config.option.collectonly
    if full and exitstatus == pytest.ExitCode.OK and session.config.stash[_KEY].complaints():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    layers = config.stash[_KEY]
    if not layers.outcomes:
        return
    terminalreporter.section("layers")
    terminalreporter.line(f"{'layer':<12}{'passed':>8}{'failed':>8}{'skipped':>8}{'seconds':>10}")
    for name in sorted(layers.outcomes, key=(*LAYERS, "(top)").index):
        counts = layers.outcomes[name]
        failed = counts["failed"] + counts["error"]
        terminalreporter.line(
            f"{name:<12}{counts['passed']:>8}{failed:>8}{counts['skipped']:>8}"
            f"{layers.seconds[name]:>10.1f}"
        )
    if config.getoption(_ALL_LAYERS):
        for complaint in layers.complaints():
            terminalreporter.line(f"error: {complaint}", red=True)
