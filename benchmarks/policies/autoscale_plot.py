"""Load, replicas of each policy, and late requests over time, as one picture."""

from __future__ import annotations

from pathlib import Path

from spotinference.simulate.autoscale import Timeline

BINS_S = 600.0
DAYS = (8.0, 11.0)
"""The part of the second half that is shown: three days, so that steps are seen."""
PER_REPLICA = 2.0
COLOURS = {
    "oracle": "#8a8a8a",
    "hpa": "#d1495b",
    "kpa": "#edae49",
    "ours": "#00798c",
}


def plot(lines: dict[str, Timeline], path: Path, title: str) -> None:
    """Writes a PNG; `lines` by policy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[1.1, 2.2, 1.2])
    first = next(iter(lines.values()))
    days, rate = _binned(first.requests, first.tick_s, total=True)
    top.fill_between(days, rate, color="#c9d6df", linewidth=0)
    top.plot(days, rate, color="#52616b", linewidth=0.9)
    top.set_ylabel("requests/s")
    top.set_title(f"{title}: cold start 480 s, {PER_REPLICA:g} requests/s per replica", loc="left")
    middle.fill_between(
        days,
        [r / PER_REPLICA for r in rate],
        color="#c9d6df",
        linewidth=0,
        label="load at 100 % utilisation",
    )
    for policy, colour in COLOURS.items():
        line = lines[policy]
        at, paid = _binned([float(n) for n in line.paid], line.tick_s)
        bold = policy == "ours"
        middle.step(
            at, paid, where="mid", color=colour, linewidth=1.8 if bold else 1.0,
            alpha=1.0 if bold else 0.85, label=policy, zorder=3 if bold else 2,
        )  # fmt: skip
        _, late = _binned(line.late, line.tick_s, total=True)
        if policy != "oracle":
            share = [60 * value for value in late]
            bottom.step(
                at, share, where="mid", color=colour, linewidth=1.8 if bold else 1.0,
                zorder=3 if bold else 2,
            )  # fmt: skip
    middle.set_ylabel("replicas paid for")
    middle.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, frameon=False, fontsize=9)
    bottom.set_ylabel("late requests\nper minute")
    bottom.set_xlabel("day")
    bottom.set_xlim(*DAYS)
    shown = [r / PER_REPLICA for d, r in zip(days, rate, strict=True) if DAYS[0] <= d <= DAYS[1]]
    middle.set_ylim(0, 2.2 * max(shown))
    top.set_ylim(0, 1.15 * PER_REPLICA * max(shown))
    for axes in (top, middle, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
        axes.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _binned(
    values: list[float], tick_s: float, *, total: bool = False
) -> tuple[list[float], list[float]]:
    """(days, mean per bin); `total`: mean per second instead of per tick."""
    size = round(BINS_S / tick_s)
    at, means = [], []
    for i in range(0, len(values) - size + 1, size):
        at.append((i + size / 2) * tick_s / 86_400)
        mean = sum(values[i : i + size]) / size
        means.append(mean / tick_s if total else mean)
    return at, means
