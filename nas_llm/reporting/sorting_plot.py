"""importance.png: losses of untrained sub-networks after sorting by each importance method (paper 1, figure 2d).

Drawn from `importance.csv` alone. Colours are those of Okabe and Ito (2008), which colour-blind people can tell apart.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nas_llm.atomic_files import atomic_path
from nas_llm.reporting import numbers
from nas_llm.reporting.run_files import spreads_widely

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CSV_FILE, PNG_FILE = "importance.csv", "importance.png"
COLUMNS = ("method", "kind", "id", "params", "fraction", "loss", "shape", "kept_layers")  # kind: full, subnetwork
COLOURS = ("#8c8c8c", "#1a1a1a", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#B8A800")
MARKERS = "oXs^Dvp<>"
SIZE = (11.0, 5.2)  # inches
LABELS = {"none": "unsorted", "activation_block": "activation, block"}
Points = Sequence[tuple[float, float]]


def plot_sorting(path: str | Path) -> Path:
    """Draw the CSV's sub-networks into `importance.png` beside it: against parameters, and each method's spread."""
    from matplotlib.figure import Figure

    with Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    methods: dict[str, list[tuple[float, float]]] = {row["method"]: [] for row in rows}
    for row in rows:
        if row["kind"] == "subnetwork":
            methods[row["method"]].append((float(row["params"]), float(row["loss"])))
    full = next((float(row["params"]), float(row["loss"])) for row in rows if row["kind"] == "full")
    figure = Figure(figsize=SIZE, dpi=160, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    _scatter(left, methods, full)
    _spread(right, methods, full)
    number = len(next(iter(methods.values())))
    figure.suptitle(
        f"{number} random sub-networks before any training, by how the super-network was sorted", fontsize=12
    )
    picture = Path(path).with_name(PNG_FILE)
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, format="png")
    return picture


def _scatter(axes: Axes, methods: Mapping[str, Points], full: tuple[float, float]) -> None:
    from matplotlib.ticker import FuncFormatter

    for place, (name, points) in enumerate(methods.items()):
        median = statistics.median(loss for _, loss in points)
        axes.plot(
            *zip(*points, strict=True),
            linestyle="none",
            marker=MARKERS[place % len(MARKERS)],
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.4,
            color=COLOURS[place % len(COLOURS)],
            alpha=0.85,
            label=f"{_label(name)}, median {median:.2f}",
            zorder=3,
        )
    axes.plot(*full, marker="*", markersize=15, color="#1a1a1a", markeredgecolor="white", linestyle="none", zorder=5)
    axes.annotate("full network", full, (-12, -4), textcoords="offset points", ha="right", fontsize=9)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: numbers.tick(x)))
    axes.set_xlim(left=0)
    axes.set_xlabel("parameters")
    axes.set_ylabel("loss on the validation split [nats/token]")
    if spreads_widely([loss for points in (*methods.values(), [full]) for _, loss in points]):
        _logarithmic(axes)
    axes.legend(frameon=False, fontsize=9)
    _plain(axes)


def _spread(axes: Axes, methods: Mapping[str, Points], full: tuple[float, float]) -> None:
    boxes = axes.boxplot(
        [[loss for _, loss in points] for points in methods.values()],
        tick_labels=[_label(name) for name in methods],
        patch_artist=True,
        widths=0.6,
        medianprops={"color": "white", "linewidth": 2},
        flierprops={"marker": ".", "markersize": 4},
    )
    for place, box in enumerate(boxes["boxes"]):
        box.set(facecolor=COLOURS[place % len(COLOURS)], edgecolor="none")
    axes.axhline(full[1], color="#1a1a1a", linewidth=0.8, linestyle=":")
    axes.set_xlabel("sorted by (box: quartiles, line: median, dotted: full network)", fontsize=9)
    axes.tick_params(axis="x", labelrotation=30)
    _plain(axes)


def _logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: numbers.tick(y)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _plain(axes: Axes) -> None:
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _label(method: str) -> str:
    return LABELS.get(method, method)
