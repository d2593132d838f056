"""pareto.png: the front, what it dominates, the full network and the truncation baseline, for each cost.

Colours are those of Okabe and Ito (2008), which colour-blind people can tell apart; markers differ as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_llm.atomic_files import atomic_path
from nas_llm.reporting import numbers
from nas_llm.reporting.run_files import RunFiles, Search
from nas_llm.search.archive import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PNG_FILE = "pareto.png"
BLUE, ORANGE, BLACK, GREY = "#0072B2", "#D55E00", "#1a1a1a", "#b4b4b4"
LEGEND = ("full network", "Pareto front", "exported", "dominated", "truncated, untrained")
PANEL = (6.4, 4.8)  # inches


def plot_front(run: RunFiles, search: Search) -> Path:
    """Write `pareto.png`, one panel for each pair of a cost and a quality."""
    from matplotlib.figure import Figure

    planes = search.planes()
    figure = Figure(figsize=(PANEL[0] * len(planes), PANEL[1]), dpi=160, layout="constrained")
    for axes, (cost, quality) in zip(figure.subplots(1, len(planes), squeeze=False)[0], planes, strict=True):
        _panel(axes, run, search, cost, quality)
    path = run.path / PNG_FILE
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def in_plane(evaluations: Sequence[Evaluation], cost: str, quality: str) -> list[tuple[float, float]]:
    """Points of those that measured both, sorted by cost."""
    both = [e.objectives for e in evaluations if cost in e.objectives and quality in e.objectives]
    return sorted((o[cost], o[quality]) for o in both if math.isfinite(o[cost]) and math.isfinite(o[quality]))


def staircase(search: Search, cost: str, quality: str) -> list[tuple[float, float]]:
    """The part of the front that is non-dominated in this plane: what a line may connect."""
    line: list[tuple[float, float]] = []
    for x, y in in_plane(search.front, cost, quality):
        if not line or search.is_better(quality, y, line[-1][1]):
            line.append((x, y))
    return line


def _panel(axes: Axes, run: RunFiles, search: Search, cost: str, quality: str) -> None:
    front = in_plane(search.front, cost, quality)
    dominated = in_plane(search.dominated, cost, quality)
    baseline = in_plane(with_costs(search, cost), cost, quality)
    full = in_plane([search.full], cost, quality)
    exported = in_plane([export.evaluation for export in run.exports], cost, quality)
    marks: dict[str, Any] = {"linestyle": "none", "clip_on": False}
    if dominated:
        axes.plot(
            *_xy(dominated), marker="o", markersize=4.5, color=GREY, label="dominated", zorder=2, alpha=0.75, **marks
        )
    if baseline:
        dashes = "--" if cost in numbers.COUNTS else "none"  # times are too noisy to be joined up
        look: dict[str, Any] = {"marker": "v", "markersize": 6, "color": ORANGE, "linewidth": 1, "linestyle": dashes}
        axes.plot(*_xy(baseline), zorder=3, label="truncated, untrained", **look)
    axes.plot(*_xy(staircase(search, cost, quality)), color=BLUE, linewidth=1.8, zorder=4)
    axes.plot(*_xy(front), marker="o", markersize=6, color=BLUE, label="Pareto front", zorder=5, **marks)
    if exported:
        ring: dict[str, Any] = {
            "markersize": 12,
            "markerfacecolor": "none",
            "markeredgewidth": 1.6,
            "markeredgecolor": BLACK,
        }
        axes.plot(*_xy(exported), marker="o", label="exported", zorder=6, **ring, **marks)
    axes.plot(
        *_xy(full),
        marker="*",
        markersize=15,
        color=BLACK,
        markeredgecolor="white",
        label="full network",
        zorder=7,
        **marks,
    )
    _decorate(axes, search, cost, quality, [*front, *dominated, *baseline, *full])


def with_costs(search: Search, cost: str) -> list[Evaluation]:
    """The baseline at the cost of the networks whose sizes it has: truncation measures no latency of its own."""
    by_id = {e.id: e for e in search.front}
    return [
        Evaluation(e.architecture, {cost: by_id[id].objectives[cost], **e.objectives}, e.source, e.step)
        for id, e in search.truncation.items()
    ]


def _decorate(axes: Axes, search: Search, cost: str, quality: str, points: list[tuple[float, float]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: numbers.tick(x)))
    if search.is_logarithmic(quality, [y for _, y in points]):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: numbers.tick(y)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(left=0)
    axes.set_xlabel(numbers.axis(cost, search.unit(cost)))
    axes.set_ylabel(numbers.axis(quality, search.unit(quality)))
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    ordered = [name for name in LEGEND if name in by_label]
    axes.legend([by_label[name] for name in ordered], ordered, frameon=False)


def _xy(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
