"""sweep_progress.png and .csv: the hypervolume over the evaluations of searches of the same super-networks.

Each arm is a searcher, each of its runs a search of one super-network that all arms have searched, so that the box of
the hypervolume is the same; lines are means over the runs, bands their standard deviation. The horizontal line is the
middle network, as in search_progress.png.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nas_llm.atomic_files import atomic_path, write_text
from nas_llm.reporting import arm_look, numbers
from nas_llm.reporting.sweep import Arm, Spread, Sweep
from nas_llm.reporting.tables import aligned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CSV_FILE, PNG_FILE = "sweep_progress.csv", "sweep_progress.png"
COLUMNS = ("arm", "evaluations", "mean", "standard_deviation", "runs")
TABLE_PARTS = (0.1, 0.25, 0.5, 1.0)  # of the evaluations
SIZE = (8.6, 4.8)  # inches


def hypervolumes(arm: Arm) -> list[Spread]:
    """After 1, 2, ... evaluations, of all runs of the arm; as long as the longest, a search that ended stays there."""
    curves = []
    for search in arm.searches:
        assert search.progress is not None
        curves.append(search.progress.curves[search.facts["searcher"]])
    longest = int(max(points[-1][0] for points in curves))
    steps = [_at_every(points, longest) for points in curves]
    return [Spread.of(values) for values in zip(*steps, strict=True)]


def write_progress(sweep: Sweep) -> str:
    """Write the CSV and the picture into the sweep's folder; returns the table. Only where `sweep.shares_networks`."""
    curves = {arm.name: hypervolumes(arm) for arm in sweep.arms}
    _write_csv(sweep.path, curves)
    _plot(sweep, curves)
    return progress_table(curves)


def progress_table(curves: dict[str, list[Spread]]) -> str:
    """One row per arm: its hypervolume after parts of the evaluations; means, and +- over the runs."""
    budget = max(len(curve) for curve in curves.values())
    counts = [max(1, round(part * budget)) for part in TABLE_PARTS]
    head = ["hypervolume after", *(numbers.counted(count, "evaluation") for count in counts)]
    body = [[name, *(str(curve[min(count, len(curve)) - 1]) for count in counts)] for name, curve in curves.items()]
    return aligned(head, body)


def _at_every(points: Sequence[tuple[float, float]], longest: int) -> list[float]:
    """Values of a step function at 1 ... longest."""
    values, place = [], 0
    for evaluations in range(1, longest + 1):
        while place + 1 < len(points) and points[place + 1][0] <= evaluations:
            place += 1
        values.append(points[place][1])
    return values


def _write_csv(folder: Path, curves: dict[str, list[Spread]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, curve in curves.items():
        for place, spread in enumerate(curve):
            writer.writerow((name, place + 1, spread.mean, spread.deviation, spread.runs))
    write_text(folder / CSV_FILE, text.getvalue())


def _plot(sweep: Sweep, curves: dict[str, list[Spread]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=130, layout="constrained")
    axes = figure.subplots()
    for place, (name, curve) in enumerate(curves.items()):
        _draw(axes, place, name, curve)
    middle = statistics.fmean(s.progress.heuristic for s in sweep.arms[0].searches if s.progress is not None)
    label = f"middle network {middle:.3f}"
    axes.axhline(middle, color=arm_look.COLOURS[0], linewidth=1.2, linestyle=(0, (5, 3)), label=label, zorder=1)
    early = [curve[min(len(curve) - 1, len(curve) // 20)].mean for curve in curves.values()]
    low, high = min(middle, *early), max(curve[-1].mean + (curve[-1].deviation or 0.0) for curve in curves.values())
    axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    axes.set_xlim(0, max(len(curve) for curve in curves.values()))
    axes.set_xlabel("architectures asked for")
    axes.set_ylabel("hypervolume [part of the box]")
    runs = len(sweep.arms[0].searches)
    axes.set_title(f"mean of {runs} super-networks, band: ± standard deviation" if runs > 1 else "", fontsize=10)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    with atomic_path(sweep.path / PNG_FILE) as temporary:
        figure.savefig(temporary, format="png")


def _draw(axes: Axes, place: int, name: str, curve: Sequence[Spread]) -> None:
    look, x = arm_look.line(place), range(1, len(curve) + 1)
    means = [spread.mean for spread in curve]
    label = f"{name} {means[-1]:.3f}"
    axes.plot(x, means, **look, drawstyle="steps-post", linewidth=1.6, label=label, zorder=3)
    low = [spread.mean - (spread.deviation or 0.0) for spread in curve]
    high = [spread.mean + (spread.deviation or 0.0) for spread in curve]
    axes.fill_between(x, low, high, step="post", color=look["color"], alpha=0.10, linewidth=0, zorder=2)
