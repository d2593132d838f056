"""importance_scores.png: what the run's importance method thinks of every unit, layer by layer.

FFN neurons and hidden channels as curves from the most important one down, heads and KV groups as a map of layers and
places, layers as bars.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from nas_llm.atomic_files import atomic_path
from nas_llm.reporting.importance_scores import Scores, falling, spreads
from nas_llm.reporting.run_files import RunFiles

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

PNG_FILE = "importance_scores.png"
BLUE, MAP = "#0072B2", "viridis"
PANEL = (6.0, 4.0)  # inches
POINTS, LEGEND_LAYERS, WRITTEN_CELLS = 400, 12, 100


def plot_scores(run: RunFiles, scores: Scores) -> Path:
    """Write `importance_scores.png`, one panel for each axis that has scores."""
    from matplotlib.figure import Figure

    panels = _panels(scores)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.4), dpi=160, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, draw in zip(grid, panels, strict=False):
        draw(axes)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(f"Importance scores: {scores.method}", fontsize=12)
    path = run.path / PNG_FILE
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _panels(scores: Scores) -> list[Callable[[Axes], None]]:
    found: list[Callable[[Axes], None]] = []
    if scores.ffn:
        found.append(lambda axes: _neurons(axes, scores))
    if scores.attention.size:
        found.append(lambda axes: _map(axes, scores.attention, "Attention heads", "heads", scores.heads_per_group))
    if scores.hidden is not None:
        found.append(lambda axes: _channels(axes, scores))
    if scores.heads_per_group > 1 and scores.groups:
        found.append(lambda axes: _map(axes, scores.grouped, "KV groups", "KV groups", 1))
    layers = scores.layers
    if layers is not None:
        found.append(lambda axes: _layers(axes, layers))
    return found


def _neurons(axes: Axes, scores: Scores) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    shades = colormaps[MAP]
    depth = max(scores.ffn) + 1
    everything = np.concatenate(list(scores.ffn.values()))
    positive = spreads(everything)
    for layer, values in scores.ffn.items():
        colour = shades(0.9 * layer / max(depth - 1, 1))
        line = falling(values, POINTS, positive=positive)
        axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.5, label=f"layer {layer}")
    if depth <= LEGEND_LAYERS:
        axes.legend(frameon=False, fontsize=8, ncols=2)
    else:
        mappable = ScalarMappable(Normalize(0, (depth - 1) / 0.9), shades)
        bar = axes.figure.colorbar(mappable, ax=axes, label="layer")
        bar.ax.set_ylim(0, depth - 1)
    _curve_axes(axes, "FFN neurons of every layer", "neurons", everything)


def _channels(axes: Axes, scores: Scores) -> None:
    assert scores.hidden is not None
    line = falling(scores.hidden, POINTS, positive=spreads(scores.hidden))
    axes.plot(*zip(*line, strict=True), color=BLUE, linewidth=1.8)
    _curve_axes(axes, "Hidden channels (residual stream)", "channels", scores.hidden)


def _curve_axes(axes: Axes, title: str, units: str, values: np.ndarray) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(f"{units}, the most important first")
    axes.set_xlim(left=0)
    if spreads(values):
        axes.set_yscale("log")
        axes.set_ylabel("score (logarithmic)")
    else:
        axes.set_ylabel("score")
        if values.min() >= 0:
            axes.set_ylim(bottom=0)
    _plain(axes)


def _map(axes: Axes, table: np.ndarray, title: str, units: str, per_group: int) -> None:
    """Rows are layers, the first at the top; columns are places before sorting."""
    image = axes.imshow(table, aspect="auto", cmap=MAP, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label="score")  # type: ignore[union-attr]
    if table.size <= WRITTEN_CELLS:
        middle = (np.nanmin(table) + np.nanmax(table)) / 2
        for (row, column), value in np.ndenumerate(table):
            if np.isfinite(value):
                colour = "black" if value > middle else "white"
                axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7, color=colour)
    for edge in range(per_group, table.shape[1], per_group) if per_group > 1 else ():
        axes.axvline(edge - 0.5, color="white", linewidth=2.5)
    grouped = f", groups of {per_group} apart" if per_group > 1 else ""
    axes.set_title(f"{title} of every layer{grouped}", fontsize=11)
    axes.set_xlabel(f"{units}, places before sorting")
    axes.set_ylabel("layer")
    _whole_ticks(axes)


def _layers(axes: Axes, values: np.ndarray) -> None:
    bars = axes.bar(range(len(values)), values, color=BLUE)
    if len(values) <= 40:
        ranks = np.argsort(np.argsort(-values, kind="stable"), kind="stable") + 1
        axes.bar_label(bars, [str(rank) for rank in ranks], fontsize=8, padding=2)
    axes.set_title("Layers (the number is the place in the order of keeping)", fontsize=11)
    axes.set_xlabel("layer")
    axes.set_ylabel("score")
    axes.margins(y=0.12)
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    _plain(axes)


def _whole_ticks(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        locator: Any = axis.get_major_locator()
        locator.set_params(integer=True)
    axes.spines[:].set_visible(False)


def _plain(axes: Axes) -> None:
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
