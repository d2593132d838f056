"""sampling.png: how many parameters the sub-networks have that each sampler trains (paper 1, figures 2a and 2b).

Drawn from `sampling.csv` alone: one histogram per sampler, over the same equally wide bins.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from nas_llm.reporting import numbers
from nas_llm.run_directory import atomic_path

CSV_FILE, PNG_FILE = "sampling.csv", "sampling.png"
COLUMNS = ("sampler", "step", "id", "params")
BINS = 22
PANEL = (4.2, 2.4)  # inches
BLUE, BLACK = "#0072B2", "#1a1a1a"


def plot_sampling(path: str | Path, *, smallest: int, largest: int) -> Path:
    """Draw the CSV into `sampling.png` beside it; ``smallest`` and ``largest`` are the space's parameter counts."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    counts: dict[str, list[int]] = {row["sampler"]: [] for row in rows}
    for row in rows:
        counts[row["sampler"]].append(int(row["params"]))
    columns = min(3, len(counts))
    lines = -(-len(counts) // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * lines + 0.6), dpi=160, layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    edges = np.linspace(smallest, largest, BINS + 1)
    for axes, (name, params) in zip(panels, counts.items(), strict=False):
        share = np.full(len(params), 1 / len(params))
        axes.hist(params, bins=edges.tolist(), weights=share, color=BLUE, edgecolor="white", linewidth=0.5)
        axes.axvline(float(np.median(params)), color=BLACK, linewidth=1, linestyle=":")
        axes.set_title(f"{name.replace('_', ' ')} (median {numbers.count(np.median(params))})", fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: numbers.tick(x)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for place in range(len(counts), len(panels)):
        panels[place].set_visible(False)
        panels[place - columns].tick_params(labelbottom=True)  # nothing stands below it
    figure.supxlabel("parameters of a trained sub-network (dotted: median)", fontsize=10)
    figure.supylabel("share of them", fontsize=10)
    picture = Path(path).with_name(PNG_FILE)
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, format="png")
    return picture
