"""sampling.png: how many parameters the sub-networks have that each sampler trains (paper 1, figures 2a and 2b).

Drawn from `sampling.csv` alone: one histogram per sampler, over the same equally wide bins. The ends of a sandwich,
which every step trains, are thin lines with their share of all that is trained; they would hide what is sampled.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from nas_llm.atomic_files import atomic_path
from nas_llm.reporting import numbers

CSV_FILE, PNG_FILE = "sampling.csv", "sampling.png"
COLUMNS = ("sampler", "step", "kind", "id", "params")
SAMPLED, LARGEST, SMALLEST = "sampled", "largest", "smallest"  # the kinds: drawn, or an end of the sandwich
BINS = 22
PANEL = (4.2, 2.4)  # inches
TALL, HEADROOM = 0.3, 1.25  # bars of a larger share, which would flatten the others, are cut: the share is written
PLAIN = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # behind words
BLUE, ORANGE, BLACK = "#0072B2", "#D55E00", "#1a1a1a"


def plot_sampling(path: str | Path, *, smallest: int, largest: int) -> Path:
    """Draw the CSV into `sampling.png` beside it; ``smallest`` and ``largest`` are the space's parameter counts."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    counts: dict[str, list[int]] = {row["sampler"]: [] for row in rows}
    ends: dict[str, list[int]] = {row["sampler"]: [] for row in rows}
    for row in rows:
        (counts if row["kind"] == SAMPLED else ends)[row["sampler"]].append(int(row["params"]))
    columns = min(3, len(counts))
    lines = -(-len(counts) // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * lines + 0.6), dpi=160, layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    edges = np.linspace(smallest, largest, BINS + 1)
    shares = {name: np.histogram(params, edges)[0] / max(len(params), 1) for name, params in counts.items()}
    bars = np.concatenate(list(shares.values()))
    top = HEADROOM * float(max(bars[bars <= TALL], default=1.0))
    for axes, (name, params) in zip(panels, counts.items(), strict=False):
        title = name.replace("_", " ")
        if params:
            share, width = shares[name], edges[1] - edges[0]
            axes.bar(edges[:-1], share, width, align="edge", color=BLUE, edgecolor="white", linewidth=0.5)
            for place in np.flatnonzero(share > top):
                at = (edges[place], 0.88 * top)
                axes.annotate(f"{share[place]:.0%}", at, ha="right", va="center", fontsize=8, color=BLUE, bbox=PLAIN)
            axes.axvline(float(np.median(params)), color=BLACK, linewidth=1, linestyle=":")
            title = f"{title} (median {numbers.count(np.median(params))})"
        for end in sorted(set(ends[name])):
            axes.axvline(end, color=ORANGE, linewidth=1)
        if ends[name]:
            apart = len(ends[name]) / (len(ends[name]) + len(params))
            said = {"fontsize": 8, "color": ORANGE, "bbox": PLAIN, "ha": "right", "va": "top"}
            axes.annotate(f"ends: {apart:.0%} of what is trained", (0.92, 0.96), xycoords="axes fraction", **said)
        axes.set_title(title, fontsize=10)
        axes.set_ylim(0, top)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: numbers.tick(x)))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for unused in range(len(counts), len(panels)):
        panels[unused].set_visible(False)
        panels[unused - columns].tick_params(labelbottom=True)  # nothing stands below it
    marked = "; orange: largest and smallest of the sandwich, not counted" if any(ends.values()) else ""
    figure.supxlabel(f"parameters of a sampled sub-network (dotted: median{marked})", fontsize=10)
    figure.supylabel("share of them", fontsize=10)
    picture = Path(path).with_name(PNG_FILE)
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, format="png")
    return picture
