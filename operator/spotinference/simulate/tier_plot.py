"""The picture of a replayed tier: what came, what stood where, what it cost, beside the others.

matplotlib is an optional dependency (`pip install 'spotinference[plots]'`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spotinference import errors
from spotinference.core.observed import Market
from spotinference.simulate.tier import Outcome, Point, Setup

SPOT_COLOURS = ("#1b6ca8", "#3d9bd1", "#7cc4e8", "#2a9d8f", "#76c7b7", "#5b6fb5", "#9aa8dc")
ON_DEMAND_COLOUR = "#e07a3f"
LOSS_COLOUR = "#b3261e"
OTHER_COLOURS = ("#8a8a8a", "#b58db6")


def write(path: Path, setup: Setup, outcomes: Sequence[Outcome]) -> None:
    """Four strips over time as PNG (or whatever the file's ending says)."""
    plt = pyplot()
    ours = outcomes[0]
    hours = [p.at_s / 3600 for p in ours.timeline]
    figure, axes = plt.subplots(
        4, 1, figsize=(12, 10), sharex=True, height_ratios=(2, 3, 2, 2), layout="constrained"
    )
    per_million = ours.usd_per_million_output_tokens
    figure.suptitle(
        f"{ours.tally.requests:,.0f} requests in {ours.hours:.0f} h: "
        f"\\${ours.usd:,.2f}, \\${per_million or 0:,.2f} per million output tokens; "
        f"{ours.reclaims} nodes reclaimed, {ours.tally.late / max(1.0, ours.tally.requests):.2%} "
        "of the requests late",
        fontsize=12,
    )
    _requests(axes[0], hours, ours.timeline)
    _replicas(axes[1], hours, ours.timeline, setup)
    _price(axes[2], outcomes)
    _bill(axes[3], outcomes)
    axes[3].set_xlabel("hours")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0)
        axis.set_ylim(bottom=0)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise errors.ConfigInvalid(f"--plot {path}: {error}") from None
    finally:
        plt.close(figure)


def pyplot() -> Any:
    """Matplotlib without a display; `ConfigInvalid` says how to get it."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise errors.ConfigInvalid(
            "--plot needs matplotlib: pip install 'spotinference[plots]'"
        ) from None
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def _requests(axis: Any, hours: list[float], points: Sequence[Point]) -> None:
    axis.fill_between(hours, [p.requests for p in points], color="#c9d6e2", step="post", lw=0)
    axis.set_ylabel("requests/s")
    right = axis.twinx()
    right.plot(hours, [p.queued for p in points], color=LOSS_COLOUR, lw=0.9, drawstyle="steps-post")
    right.set_ylabel("waiting", color=LOSS_COLOUR)
    right.tick_params(axis="y", labelcolor=LOSS_COLOUR)
    right.spines["top"].set_visible(False)
    right.set_ylim(bottom=0)


def _replicas(axis: Any, hours: list[float], points: Sequence[Point], setup: Setup) -> None:
    markets = sorted(
        {m for p in points for m in p.ready},
        key=lambda m: (setup.pools[m.pool].capacity_type != "spot", m),
    )
    colours = _colours(markets, setup)
    stacks = [[p.ready.get(m, 0) for p in points] for m in markets]
    if markets:
        axis.stackplot(
            hours, stacks, colors=colours, labels=[str(m) for m in markets], step="post", lw=0
        )
    ready = [sum(p.ready.values()) for p in points]
    both = [n + p.starting for n, p in zip(ready, points, strict=True)]
    axis.fill_between(
        hours, ready, both, step="post", facecolor="none", edgecolor="#666", hatch="////", lw=0,
        label="starting",
    )  # fmt: skip
    top = max(both, default=0) + 0.6
    lost = [(h, p.lost) for h, p in zip(hours, points, strict=True) if p.lost]
    if lost:
        axis.scatter(
            [h for h, _ in lost], [top] * len(lost), [18 + 12 * n for _, n in lost],
            marker="v", color=LOSS_COLOUR, label="node reclaimed", clip_on=False, zorder=3,
        )  # fmt: skip
    axis.set_ylabel("replicas")
    axis.legend(loc="upper left", bbox_to_anchor=(1.005, 1), frameon=False, fontsize=8)


def _colours(markets: Sequence[Market], setup: Setup) -> list[str]:
    spot = iter(SPOT_COLOURS * len(markets))
    return [
        next(spot) if setup.pools[m.pool].capacity_type == "spot" else ON_DEMAND_COLOUR
        for m in markets
    ]


def _price(axis: Any, outcomes: Sequence[Outcome]) -> None:
    for outcome, colour in zip(outcomes, (SPOT_COLOURS[0], *OTHER_COLOURS), strict=False):
        hours = [p.at_s / 3600 for p in outcome.timeline]
        axis.plot(
            hours, [p.usd_per_h for p in outcome.timeline], color=colour, lw=1.2,
            drawstyle="steps-post", label=outcome.policy,
        )  # fmt: skip
    axis.set_ylabel("$ per hour")
    axis.legend(loc="upper left", bbox_to_anchor=(1.005, 1), frameon=False, fontsize=8)


def _bill(axis: Any, outcomes: Sequence[Outcome]) -> None:
    """What was spent so far; the label says what a million output tokens cost in the end."""
    for outcome, colour in zip(outcomes, (SPOT_COLOURS[0], *OTHER_COLOURS), strict=False):
        points = outcome.timeline
        if not points:
            continue
        step_h = outcome.hours / len(points)
        spent, total = [], 0.0
        for point in points:
            spent.append(total)
            total += point.usd_per_h * step_h
        hours = [p.at_s / 3600 for p in points]
        per_million = outcome.usd_per_million_output_tokens or 0.0
        label = f"{outcome.policy}: \\${per_million:,.2f} per million"
        axis.plot(hours, spent, color=colour, lw=1.6, label=label)
    axis.set_ylabel("$ spent")
    axis.legend(loc="upper left", frameon=False, fontsize=9)
