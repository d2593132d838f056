"""search_progress.png: the hypervolume over the evaluations of every search of a run (paper 2, figure 4).

The horizontal line is the heuristic sub-network, the middle of the search space: what one has without any search.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_llm.atomic_files import atomic_path
from nas_llm.reporting import numbers
from nas_llm.reporting.front_plot import BLACK
from nas_llm.reporting.run_files import Progress, RunFiles

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

PROGRESS_FILE = "search_progress.png"
SIZE = (8.6, 4.4)  # inches
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito (2008)
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)))  # tell apart what comes after the last colour


def plot_progress(run: RunFiles, progress: Progress) -> Path:
    """Write `search_progress.png`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=SIZE, dpi=160, layout="constrained")
    axes = figure.subplots()
    for place, (searcher, points) in enumerate(progress.curves.items()):
        x, y = zip(*points, strict=True)
        look: dict[str, Any] = {
            "color": COLOURS[place % len(COLOURS)],
            "linestyle": DASHES[place // len(COLOURS) % len(DASHES)],
        }
        label = f"{numbers.searcher(searcher)} {y[-1]:.3f}"
        axes.plot(x, y, drawstyle="steps-post", linewidth=1.8, label=label, zorder=3, **look)
        axes.plot(x[-1:], y[-1:], marker="o", markersize=5, color=look["color"], zorder=4, clip_on=False)
    heuristic = f"middle network {progress.heuristic:.3f}"
    axes.axhline(progress.heuristic, color=BLACK, linewidth=1.2, linestyle=(0, (5, 3)), label=heuristic, zorder=2)
    axes.set_xlim(0, progress.evaluations)
    axes.set_ylim(*progress.span())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("architectures asked for")
    axes.set_ylabel("hypervolume [part of the box]")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(*_from_the_best_down(axes), frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    path = run.path / PROGRESS_FILE
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _from_the_best_down(axes: Axes) -> tuple[list[Artist], list[str]]:
    """Legend entries in the order in which the lines end; every label ends in its value."""
    entries = zip(*axes.get_legend_handles_labels(), strict=True)
    ordered = sorted(entries, key=lambda entry: -float(entry[1].rpartition(" ")[2]))
    return [handle for handle, _ in ordered], [label for _, label in ordered]
