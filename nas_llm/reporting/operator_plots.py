"""Pictures of a search over operators (UNAST, paper 3): operators.png (figure 3: latency against score), scores.png
(figure 4: score by layer), selection.png (figures 5 and 6: before and after training), budgets.png (loss over budgets)
and structures.png (appendix G: what every layer became).

Drawn from ``operators.csv`` and ``networks.jsonl`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nas_llm.atomic_files import atomic_path
from nas_llm.operator_network import SUBLAYERS, Ffn, Heads, Identity, Linear, Operator, Quantized, Sparse, Teacher
from nas_llm.reporting.operator_files import NetworkRow, OperatorRow, read_networks, read_operators

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008): colour-blind people can tell them apart
COLOURS = {
    "teacher": "#1a1a1a",
    "identity": "#8c8c8c",
    "linear": "#E69F00",
    "heads": "#0072B2",
    "ffn": "#D55E00",
    "sparse": "#009E73",
    "int4": "#CC79A7",
    "int8": "#56B4E9",
}
OTHER = "#B8A800"
MARKERS = {"teacher": "*", "identity": "X", "linear": "D", "heads": "o", "ffn": "s", "sparse": "^"}
NAMES = {"attention": "attention", "mlp": "feed-forward"}
AXES = {
    "local": "SquareHead of the sublayer's output",
    "global_mse": "normalised MSE of the network's output",
    "loss_change": "change of the loss [nats/token]",
    "latency": "latency [part of the teacher's sublayer]",
    "params": "parameters [part of the teacher's sublayer]",
}
PICTURES = {
    "budgets": "The best network of every budget, before and after training",
    "structures": "What every layer became",
    "operators": "What every distilled operator costs and loses",
    "scores": "Scores of the operators by layer",
    "selection": "Sums of scores and losses before training, against the loss after it",
}
FULL, HATCH = "#d9d9d9", "////"


def plot_operators(run_dir: str | Path) -> list[Path]:
    """Draws what the run's files allow; returns the pictures' paths."""
    folder = Path(run_dir)
    operators, networks = read_operators(folder), read_networks(folder)
    pictures = {
        "operators.png": _costs_against_scores(operators),
        "scores.png": _scores_by_layer(operators),
        "selection.png": _selection(networks),
        "budgets.png": _budgets(networks),
        "structures.png": _structures([row for row in networks if row.winner]),
    }
    written = []
    for name, figure in pictures.items():
        if figure is None:
            (folder / name).unlink(missing_ok=True)  # of budgets before
            continue
        with atomic_path(folder / name) as temporary:
            figure.savefig(temporary, format="png")
        written.append(folder / name)
    return written


def score_of(rows: Sequence[OperatorRow]) -> str:
    """The score that most is known of, the global one before the others."""
    return max(("global_mse", "loss_change", "local"), key=lambda key: sum(key in row.values for row in rows))


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation, ties at their mean rank; NaN where one side is constant."""
    ranks = [_ranks(np.asarray(values, dtype=float)) for values in (a, b)]
    centred = [r - r.mean() for r in ranks]
    norm = float(np.linalg.norm(centred[0]) * np.linalg.norm(centred[1]))
    return float(centred[0] @ centred[1]) / norm if norm else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=160, layout="constrained")


def _style(axes: Axes) -> None:
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _costs_against_scores(rows: Sequence[OperatorRow]) -> Figure | None:
    cost = "latency" if any("latency" in row.values for row in rows) else "params"
    score = score_of(rows)
    teachers = {(r.layer, r.sublayer): r.values.get(cost) for r in rows if r.kind == "teacher"}
    figure = _figure(11, 4.8)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, sublayer in zip(panels, SUBLAYERS, strict=True):
        groups: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            whole = teachers.get((row.layer, row.sublayer))
            if row.sublayer == sublayer and whole and {cost, score} <= row.values.keys() and row.kind != "teacher":
                groups.setdefault(row.kind, []).append((row.values[cost] / whole, row.values[score]))
        for kind, points in groups.items():
            xs, ys = zip(*points, strict=True)
            colour = COLOURS.get(kind, OTHER)
            axes.scatter(xs, ys, s=26, color=colour, marker=MARKERS.get(kind, "P"), label=kind, alpha=0.8, linewidth=0)
        axes.set_title(NAMES[sublayer], fontsize=11)
        axes.set_xlabel(AXES.get(cost, cost))
        _style(axes)
        if groups:
            axes.legend(fontsize=8, frameon=False)
    positive = [row.values[score] for row in rows if row.values.get(score, 0) > 0]
    if score != "loss_change" and positive:
        panels[0].set_yscale("log")
    panels[0].set_ylabel(AXES[score])
    figure.suptitle("Every distilled operator: what it costs and what it loses", fontsize=12)
    return figure


def _scores_by_layer(rows: Sequence[OperatorRow]) -> Figure | None:
    score = score_of(rows)
    figure = _figure(11, 4.8)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, sublayer in zip(panels, SUBLAYERS, strict=True):
        lines: dict[str, dict[int, float]] = {}
        for row in rows:
            if row.sublayer == sublayer and row.kind != "teacher" and score in row.values:
                lines.setdefault(row.operator, {})[row.layer] = row.values[score]
        kinds: dict[str, int] = {}
        for name, values in lines.items():
            kind = name.partition("-")[0]
            style = ("-", "--", ":", "-.")[kinds.setdefault(kind, 0) % 4]
            kinds[kind] += 1
            layers = sorted(values)
            axes.plot(
                layers,
                [values[layer] for layer in layers],
                style,
                color=COLOURS.get(kind, OTHER),
                marker=MARKERS.get(kind, "P"),
                markersize=4,
                linewidth=1.2,
                label=name,
            )
        axes.set_title(NAMES[sublayer], fontsize=11)
        axes.set_xlabel("layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _style(axes)
        if lines:
            axes.legend(fontsize=6.5, frameon=False, ncols=2)
    if score != "loss_change":
        panels[0].set_yscale("log")
    panels[0].set_ylabel(AXES[score])
    figure.suptitle("Scores of the operators by layer", fontsize=12)
    return figure


def _selection(rows: Sequence[NetworkRow]) -> Figure | None:
    trained = [row for row in rows if len(row.losses) > 1 and row.objective is not None]
    if len(trained) < 3:
        return None
    figure = _figure(11, 4.6)
    left, right = figure.subplots(1, 2)
    budgets = list(dict.fromkeys(row.asked for row in trained))
    palette = [*list(COLOURS.values())[3:], *list(COLOURS.values())[:3]]
    panels = (
        (left, [row.objective for row in trained], "sum of the operators' scores"),
        (right, [row.losses[0] for row in trained], "loss before training [nats/token]"),
    )
    for axes, values, label in panels:
        for place, budget in enumerate(budgets):
            chosen = [i for i, row in enumerate(trained) if row.asked == budget]
            axes.scatter(
                [values[i] for i in chosen],
                [trained[i].losses[1] for i in chosen],
                s=30,
                color=palette[place % len(palette)],
                label=f"{budget}: {_correlation([values[i] for i in chosen], [trained[i] for i in chosen])}",
                alpha=0.85,
                linewidth=0,
            )
            for i in chosen:
                if trained[i].winner:
                    axes.scatter(values[i], trained[i].losses[1], s=130, facecolor="none", edgecolor="#1a1a1a")
        axes.set_xlabel(label)
        axes.legend(fontsize=7.5, frameon=False, title="budget: rank correlation; circled: chosen", title_fontsize=7.5)
        _style(axes)
    left.set_ylabel("loss after the first round of training [nats/token]")
    figure.suptitle("Before and after short training", fontsize=12)
    return figure


def _correlation(values: Sequence[float | None], rows: Sequence[NetworkRow]) -> str:
    known = [(float(value), row.losses[1]) for value, row in zip(values, rows, strict=True) if value is not None]
    return "too few" if len(known) < 3 else f"{spearman(*zip(*known, strict=True)):+.2f}"


def _budgets(rows: Sequence[NetworkRow]) -> Figure | None:
    winners = [row for row in rows if row.winner and row.budget]
    names = {name for row in winners for name in row.budget}
    if not winners or len(names) != 1:
        return None
    (name,) = names
    teacher = next((row for row in rows if not row.budget), None)
    figure = _figure(7.2, 4.8)
    axes = figure.subplots()
    others = [row for row in rows if row.budget and not row.winner]
    axes.scatter(
        [row.costs[name] for row in others], [row.losses[0] for row in others], s=14, color="#b3b3b3", label="untrained"
    )
    pools = list(dict.fromkeys(row.pool for row in winners))
    for pool, marker in zip(pools, cycle("osD^vP"), strict=False):
        ordered = sorted((row for row in winners if row.pool == pool), key=lambda row: row.costs[name])
        xs, said = [row.costs[name] for row in ordered], f", pool {pool}" if len(pools) > 1 else ""
        trained, untrained = [row.losses[-1] for row in ordered], [row.losses[0] for row in ordered]
        axes.plot(xs, trained, f"{marker}-", color="#0072B2", label=f"chosen, trained{said}", markersize=6)
        axes.plot(xs, untrained, f"{marker}:", color="#E69F00", label=f"chosen, untrained{said}", markersize=4)
    if teacher is not None:
        axes.plot([1.0], [teacher.losses[-1]], "*", color="#1a1a1a", markersize=13, label="teacher")
    axes.set_xlabel(f"{name} of the blocks [part of the teacher's]")
    axes.set_ylabel("loss [nats/token]")
    losses = [loss for row in rows for loss in row.losses]
    if losses and max(losses) > 5 * min(losses) > 0:
        axes.set_yscale("log")
    _style(axes)
    axes.legend(fontsize=8, frameon=False)
    axes.set_title("The best network of every budget", fontsize=12)
    return figure


def _structures(rows: Sequence[NetworkRow]) -> Figure | None:
    if not rows:
        return None
    depth = len(rows[0].network.blocks)
    columns = min(len(rows), 5)
    lines = -(-len(rows) // columns)
    figure = _figure(max(3.2 * columns, 4.5), max(0.22 * depth + 1.6, 2.4) * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    sizes = _largest([row.network.blocks for row in rows])
    for axes, row in zip(grid.flat, rows, strict=False):
        for layer, block in enumerate(row.network.blocks):
            for side, sublayer in ((-1, "attention"), (1, "mlp")):
                _bar(axes, layer, side, block.of(sublayer), sizes)  # type: ignore[arg-type]
        axes.set_xlim(-1.05, 1.05)
        axes.set_ylim(depth - 0.4, -0.6)
        axes.set_xticks([-0.5, 0.5], ["attention", "feed-forward"], fontsize=8)
        axes.set_yticks(range(depth), [str(i) for i in range(depth)], fontsize=7)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        loss = f", loss {row.losses[-1]:.3f}" if row.losses else ""
        axes.set_title(f"{row.asked or 'teacher'}{loss}", fontsize=9)
    for axes in list(grid.flat)[len(rows) :]:
        axes.set_visible(False)
    figure.suptitle("What every layer became; hatched: the teacher's own", fontsize=11)
    return figure


def _largest(networks: Sequence[Sequence[object]]) -> Mapping[str, int]:
    """Widest operator of each kind; the teacher's own size is not in its name."""
    operators = [op for blocks in networks for block in blocks for op in (block.attention, block.mlp)]  # type: ignore[attr-defined]
    heads = [op.kv_groups * op.heads_per_group * op.head_dim for op in operators if isinstance(op, Heads)]
    return {"heads": max(heads, default=1), "ffn": max((op.ffn for op in operators if isinstance(op, Ffn)), default=1)}


def _bar(axes: Axes, layer: int, side: int, operator: Operator, sizes: Mapping[str, int]) -> None:
    kind = operator.name.partition("-")[0]
    width, hatch, text = 1.0, None, operator.name
    if isinstance(operator, Teacher):
        hatch, text = HATCH, ""
    elif isinstance(operator, Heads):
        width = 0.8 * operator.kv_groups * operator.heads_per_group * operator.head_dim / sizes["heads"]
        text = f"{operator.kv_groups * operator.heads_per_group} x {operator.head_dim}"
    elif isinstance(operator, Ffn):
        width, text = 0.8 * operator.ffn / sizes["ffn"], str(operator.ffn)
    elif isinstance(operator, Identity):
        width, text = 0.0, "left out"
    elif isinstance(operator, Linear):
        width, text = 0.3, "linear"
    elif isinstance(operator, Sparse | Quantized):
        text = operator.name
    colour = FULL if isinstance(operator, Teacher) else COLOURS.get(kind, OTHER)
    axes.barh(layer, side * width, height=0.8, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5)
    if text:
        inside = width > 0.25
        axes.text(
            side * (width / 2 if inside else width + 0.04),
            layer,
            text,
            ha="center" if inside else ("left" if side > 0 else "right"),
            va="center",
            fontsize=6.5,
            color="white" if inside else "#4d4d4d",
        )
