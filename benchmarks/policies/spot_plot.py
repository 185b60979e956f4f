"""Cost against missed time, one panel per trace and cold start: down and left is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOKS = {
    "ours": ("#d1495b", "*", "ours"),
    "spothedge+1": ("#00798c", "o", "SpotHedge, 1 spare"),
    "spothedge+2": ("#30638e", "s", "SpotHedge, 2 spares"),
    "round-robin": ("#8d96a3", "^", "round robin"),
    "even-spread": ("#b9bec6", "v", "even spread"),
}
"""Policy: colour, marker, name."""
LEAST_MISSED = 1e-4
"""Less than a tick in a day and a half cannot be told from none."""


@dataclass(frozen=True, slots=True)
class Point:
    cost: float
    availability: float


def draw(points: Mapping[tuple[str, float, str], Mapping[str, Point]], path: Path) -> None:
    """`points` by trace, cold start and half; the scored half is filled, the other one hollow."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(name for name, _, _ in points))
    colds = list(dict.fromkeys(cold for _, cold, _ in points))
    figure, axes = plt.subplots(
        len(colds), len(names), figsize=(4.4 * len(names), 3.7 * len(colds)),
        squeeze=False, sharex=True, sharey=True, layout="constrained",
    )  # fmt: skip
    for row, cold in enumerate(colds):
        for column, name in enumerate(names):
            panel = axes[row][column]
            for half in ("tuned on", "scored"):
                if found := points.get((name, cold, half)):
                    _panel(panel, found, filled=half == "scored")
            panel.set_title(f"{name}, cold start {cold / 60:g} min", fontsize=10, loc="left")
            if column == 0:
                panel.set_ylabel("time with fewer than 3 replicas")
            if row == len(colds) - 1:
                panel.set_xlabel("cost (1 = on-demand only)")
    handles = [
        Line2D([], [], color=c, marker=m, linestyle="", markersize=11 if m == "*" else 7, label=n)
        for c, m, n in LOOKS.values()
    ]
    handles.append(Line2D([], [], color="#333333", linestyle="--", label="cheapest in hindsight"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
    figure.suptitle(
        "Three replicas on spot: cost against broken promise\n"
        "filled: the half of the trace nothing was tuned on; hollow: the other half; "
        "down and left is better",
        fontsize=11, x=0.01, ha="left",
    )  # fmt: skip
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(panel: Any, found: Mapping[str, Point], *, filled: bool) -> None:
    bound = found["bound"]
    panel.axvline(
        bound.cost, color="#333333", linestyle="--", linewidth=1, alpha=1 if filled else 0.35
    )
    for policy, (colour, marker, _) in LOOKS.items():
        point = found[policy]
        missed = max(LEAST_MISSED, 1 - point.availability)
        panel.scatter(
            point.cost, missed, marker=marker, s=190 if marker == "*" else 55,
            facecolors=colour if filled else "none", edgecolors=colour,
            linewidths=1.3, zorder=4 if policy == "ours" else 3,
        )  # fmt: skip
    rival, ours = found["spothedge+1"], found["ours"]
    if filled:
        panel.annotate(
            "", xy=(ours.cost, max(LEAST_MISSED, 1 - ours.availability)),
            xytext=(rival.cost, max(LEAST_MISSED, 1 - rival.availability)),
            arrowprops={"arrowstyle": "->", "color": "#d1495b", "alpha": 0.6, "shrinkA": 6, "shrinkB": 9},
        )  # fmt: skip
        panel.annotate(
            f"{ours.cost / rival.cost - 1:+.0%} cost", xy=(ours.cost, max(LEAST_MISSED, 1 - ours.availability)),
            xytext=(-9, 8), textcoords="offset points", color="#d1495b", fontsize=8.5, ha="right",
        )  # fmt: skip
    panel.set_yscale("log")
    panel.set_ylim(LEAST_MISSED * 0.6, 1.2)
    panel.set_xlim(0, 1.25)
    panel.yaxis.set_major_formatter(
        lambda value, _: f"{value:.4g}".rstrip("0") if value < 0.001 else f"{value:g}"
    )
    panel.grid(color="#e6e6e6", linewidth=0.7)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
