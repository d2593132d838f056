"""table.png: a table of a paper beside what was measured here, drawn from ``table.csv`` alone.

With two columns named as axes: ours as points with the seeds' spread, one colour per series. Without: one panel per
column, the rows below each other, published numbers that compare hollow.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nas_llm.atomic_files import atomic_path
from nas_llm.reporting import numbers
from nas_llm.reporting.arm_look import line, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CSV_FILE, PNG_FILE = "table.csv", "table.png"
COLUMNS = (
    "row",
    "series",
    "column",
    "unit",
    "published",
    "damage",
    "ours",
    "spread",
    "seeds",
    "our_unit",
    "difference",
    "error",
)
BLUE, GREY = "#0072B2", "#8c8c8c"
PANELS = 4  # in a line
TICKS = 5  # of a panel's axis at most
WITHIN = 5  # series whose legend has room among the points
SHORT = 28  # characters of a label that has


def plot_reproduction(
    path: str | Path, *, x: str | None = None, y: str | None = None, lines: bool = False
) -> Path | None:
    """Draws the CSV into ``table.png`` beside it; None where it holds no number to draw."""
    with Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = _panels(rows) if x is None or y is None else _plane(rows, x, y, lines)
    if figure is None:
        return None
    picture = Path(path).with_name(PNG_FILE)
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, format="png")
    return picture


def _panels(rows: Sequence[dict[str, str]]) -> Figure | None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    columns = [
        (column, [row for row in rows if row["column"] == column])
        for column in dict.fromkeys(row["column"] for row in rows if row["ours"])
    ]
    if not columns:
        return None
    names = list(dict.fromkeys(row["row"] for row in rows))
    across = min(PANELS, len(columns))
    down = -(-len(columns) // across)
    size = (2.2 + 2.6 * across, (0.7 + 0.24 * len(names)) * down + 0.4)
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    panels = figure.subplots(down, across, sharey=True, squeeze=False).flatten()
    for axes, (column, own) in zip(panels, columns, strict=False):
        heights = {name: -place for place, name in enumerate(names)}
        _errors(axes, [(float(r["ours"]), heights[r["row"]], _spread(r), 0.0) for r in own if r["ours"]], BLUE, "o")
        theirs = [(float(row["published"]), heights[row["row"]]) for row in own if row["difference"]]
        if theirs:
            axes.scatter(*zip(*theirs, strict=True), marker="D", s=22, facecolors="none", edgecolors=GREY, zorder=2)
        axes.set_title(numbers.axis(column, own[0]["our_unit"]), fontsize=9)
        axes.set_yticks([heights[name] for name in names], names, fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(TICKS))
        if any(float(row["ours"]) >= 1000 for row in own if row["ours"]):
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: numbers.tick(value)))
        axes.margins(x=0.15)
        axes.set_ylim(-len(names) + 0.4, 0.6)
        _plain(axes)
    for unused in range(len(columns), len(panels)):
        panels[unused].set_visible(False)
    if any(row["difference"] for row in rows):
        figure.supxlabel("filled: measured here; hollow: published, where the two compare", fontsize=8)
    return figure


def _plane(rows: Sequence[dict[str, str]], x: str, y: str, lines: bool) -> Figure | None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    by_row: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        by_row.setdefault(row["row"], {})[row["column"]] = row
    both = [row for row in by_row.values() if x in row and y in row]
    ours = [row for row in both if row[x]["ours"] and row[y]["ours"]]
    if not ours:
        return None
    figure = Figure(figsize=(7.0, 4.6), dpi=160, layout="constrained")
    axes = figure.subplots()
    for place, series in enumerate(dict.fromkeys(row[x]["series"] for row in ours)):
        own = sorted((row for row in ours if row[x]["series"] == series), key=lambda row: float(row[x]["ours"]))
        points = [(float(r[x]["ours"]), float(r[y]["ours"]), _spread(r[x]), _spread(r[y])) for r in own]
        look = line(place)
        if lines:
            axes.plot([point[0] for point in points], [point[1] for point in points], linewidth=1.2, **look)
        _errors(axes, points, look["color"], marker(place), label=series)
    axes.set_xlabel(numbers.axis(x, ours[0][x]["our_unit"]))
    axes.set_ylabel(numbers.axis(y, ours[0][y]["our_unit"]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: numbers.tick(value)))
    named = {row[x]["series"] for row in ours}
    if max(map(len, named)) > SHORT:
        figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    elif len(named) > WITHIN:
        figure.legend(fontsize=8, frameon=False, loc="outside right upper")
    elif any(named):
        axes.legend(fontsize=8, frameon=False)
    _plain(axes)
    return figure


def _errors(
    axes: Axes, points: Sequence[tuple[float, float, float, float]], colour: str, shape: str, label: str = ""
) -> None:
    if points:
        x, y, across, up = (list(values) for values in zip(*points, strict=True))
        axes.errorbar(
            x, y, xerr=across, yerr=up, fmt=shape, color=colour, markersize=5, elinewidth=0.9, label=label, zorder=3
        )


def _spread(row: dict[str, str]) -> float:
    return float(row["spread"] or 0)


def _plain(axes: Axes) -> None:
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
