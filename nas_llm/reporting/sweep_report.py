"""The report of a sweep: sweep.csv, sweep.png (paper 1, figure 3) and the table that is printed."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from nas_llm.atomic_files import atomic_path, write_text
from nas_llm.reporting import arm_look, numbers
from nas_llm.reporting.sweep import FRACTIONS, TABLE_FRACTIONS, Sweep
from nas_llm.reporting.sweep_progress import write_progress
from nas_llm.reporting.tables import aligned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CSV_FILE, PNG_FILE = "sweep.csv", "sweep.png"
COLUMNS = ("arm", "quality", "unit", "fraction", "mean", "standard_deviation", "runs", "reference")
PANEL = (6.4, 4.8)  # inches


def write_sweep_report(folder: str | Path) -> str:
    """Write the CSV and the picture into the folder; returns the table. Of searches of the same super-networks, their
    progress besides.

    Raises:
        ValueError: as ``Sweep.of``.
    """
    sweep = Sweep.of(folder)
    _write_csv(sweep)
    _plot(sweep)
    tables = [sweep_table(sweep), *([write_progress(sweep)] if sweep.shares_networks else [])]
    return "\n\n".join(tables)


def sweep_table(sweep: Sweep) -> str:
    """One row per arm: every quality at three sizes, and its hypervolume; means, and +- over the seeds."""
    head = ["", "runs"]
    for quality in sweep.qualities:
        head += [f"{numbers.axis(quality, sweep.unit(quality))} at {f:.0%}" for f in TABLE_FRACTIONS]
        head.append(f"hypervolume of {numbers.axis(quality, sweep.unit(quality))}")
    body = []
    for arm in sweep.arms:
        row = [arm.name, str(len(arm.searches))]
        for quality in sweep.qualities:
            row += [str(arm.best(quality, fraction) or "none") for fraction in TABLE_FRACTIONS]
            row.append(str(sweep.hypervolume(arm, quality)))
        body.append(row)
    references = ", ".join(
        f"{numbers.label(quality)} {numbers.significant(sweep.worst(quality))}" for quality in sweep.qualities
    )
    note = f"hypervolume over the fraction of the parameters; reference: full size, worst of any run ({references})"
    return f"{aligned(head, body)}\n{note}"


def _write_csv(sweep: Sweep) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for arm in sweep.arms:
        for quality in sweep.qualities:
            for fraction in FRACTIONS:
                best = arm.best(quality, fraction)
                if best is not None:
                    row = (arm.name, quality, sweep.unit(quality), fraction, best.mean, best.deviation, best.runs, "")
                    writer.writerow(row)
            volume, reference = sweep.hypervolume(arm, quality), f"{sweep.worst(quality)}, worst of any run"
            name, spread = f"hypervolume of {quality}", (volume.mean, volume.deviation, volume.runs)
            writer.writerow((arm.name, name, sweep.unit(quality), "", *spread, reference))
    write_text(sweep.path / CSV_FILE, text.getvalue())


def _plot(sweep: Sweep) -> Path:
    from matplotlib.figure import Figure

    shown = [quality for quality in sweep.qualities if quality != "perplexity" or "loss" not in sweep.qualities]
    figure = Figure(figsize=(PANEL[0] * len(shown), PANEL[1]), dpi=160, layout="constrained")
    for axes, quality in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _panel(axes, sweep, quality)
    path = sweep.path / PNG_FILE
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _panel(axes: Axes, sweep: Sweep, quality: str) -> None:
    for place, arm in enumerate(sweep.arms):
        points = [(f, best) for f in FRACTIONS if (best := arm.best(quality, f)) is not None]
        if not points:
            continue
        x, means = [100 * f for f, _ in points], [best.mean for _, best in points]
        look, marker = arm_look.line(place), arm_look.marker(place)
        axes.plot(x, means, **look, marker=marker, markersize=4.5, linewidth=1.6, label=arm.name, zorder=3)
        low = [best.mean - (best.deviation or 0.0) for _, best in points]
        high = [best.mean + (best.deviation or 0.0) for _, best in points]
        axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0, zorder=2)
    axes.set_xlabel("parameters, % of the full network's, at most")
    axes.set_ylabel(f"best {numbers.axis(quality, sweep.unit(quality))}")
    seeds = max(len(arm.searches) for arm in sweep.arms)
    axes.set_title(f"mean of {seeds} seeds, band: ± standard deviation" if seeds > 1 else "one run each", fontsize=10)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
