"""The front as a table: for the terminal, for spreadsheets (pareto.csv), and as rows for the report."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from nas_llm.architecture import Architecture
from nas_llm.atomic_files import write_text
from nas_llm.reporting import numbers
from nas_llm.reporting.run_files import RunFiles, Search
from nas_llm.search.archive import Evaluation

CSV_FILE = "pareto.csv"
SHOWN_ROWS = 16
RANK = "rank"
SHAPE = ("hidden", "layers", "heads", "groups", "head_dim", "ffn")


@dataclass(frozen=True)
class Row:
    """One network as the tables show it; `truncated` is the first quality of the baseline at the same sizes."""

    evaluation: Evaluation
    fraction: float
    values: dict[str, str]
    truncated: str
    shape: dict[str, str]
    exported: bool
    is_full: bool = False


def shape_of(architecture: Architecture) -> dict[str, str]:
    """Sizes in words, ranges where the layers differ; head and group counts are per layer."""
    layers = architecture.layers
    return {
        "hidden": str(architecture.hidden),
        "layers": str(len(layers)),
        "heads": _span([layer.heads for layer in layers]),
        "groups": _span([layer.kv_groups for layer in layers]),
        "head_dim": _span([layer.head_dim for layer in layers]),
        "ffn": _span([layer.ffn for layer in layers]),
    } | _ranks_of(architecture)


def _ranks_of(architecture: Architecture) -> dict[str, str]:
    """`rank`: of every group of adapters, a range where the layers differ; nothing where there are none."""
    by_group: dict[str, list[int]] = {}
    for ranks in (*(layer.ranks for layer in architecture.layers), architecture.ranks):
        for name, rank in ranks:
            by_group.setdefault(name, []).append(rank)
    named = ", ".join(f"{name} {_span(found)}" for name, found in by_group.items())
    return {RANK: named} if named else {}


def rows(run: RunFiles, search: Search) -> list[Row]:
    """The full network, then the front from the largest to the smallest."""
    exported = {export.id for export in run.exports}
    networks = sorted(search.front, key=lambda e: -e.objectives["params"])
    others = [e for e in networks if e.id != search.full.id]
    return [_row(search, search.full, exported), *(_row(search, evaluation, exported) for evaluation in others)]


def write_csv(run: RunFiles, search: Search) -> Path:
    """`pareto.csv`: one line per network of the front, and the full network; values unrounded."""
    measured = list(search.full.objectives)
    first = search.qualities[0]
    head = ["id", "role", "fraction_of_params", *measured, f"truncation_{first}", "exported", *SHAPE, "kept_layers"]
    head += [RANK] if RANK in shape_of(search.full.architecture) else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    on_front = {evaluation.id for evaluation in search.front}
    for row in rows(run, search):
        evaluation = row.evaluation
        baseline = search.truncation.get(evaluation.id)
        role = "front" if evaluation.id in on_front else "full"
        values = [evaluation.objectives.get(name, "") for name in measured]
        truncated = "" if baseline is None else baseline.objectives.get(first, "")
        kept = " ".join(str(layer.index) for layer in evaluation.architecture.layers)
        shape = [row.shape[key] for key in SHAPE]
        ranks = [row.shape[RANK]] if RANK in row.shape else []
        known = [evaluation.id, role, f"{row.fraction:.6f}", *values, truncated, row.exported]
        writer.writerow([*known, *shape, kept, *ranks])
    path = run.path / CSV_FILE
    write_text(path, text.getvalue())
    return path


def front_table(run_dir: str | Path) -> str:
    """The front as text, beside the full network and naive truncation of the untrained one; empty without a search."""
    run = RunFiles(run_dir)
    search = run.search
    if search is None:
        return ""
    everything = rows(run, search)
    shown = thinned(everything)
    names = list(everything[0].values)
    truncation = [f"truncated: {numbers.label(search.qualities[0])}"] if search.truncation else []
    head = ["", "architecture", *(numbers.axis(n, search.unit(n)) for n in names[:1]), "of full"]
    head += [numbers.axis(name, search.unit(name)) for name in names[1:]]
    sizes = ["hidden", "layers", "heads", "ffn", *([RANK] if RANK in everything[0].shape else [])]
    head += [*truncation, *sizes]
    body = []
    for row in shown:
        first, *rest = (row.values[name] for name in names)
        cells = ["*" if row.exported else "", "full network" if row.is_full else row.evaluation.id, first]
        cells += [numbers.percent(row.fraction), *rest, *([row.truncated] if truncation else [])]
        body.append([*cells, *(row.shape[key] for key in sizes)])
    tested = len(search.front) + len(search.dominated)
    title = f"Pareto front: {len(search.front)} of {numbers.counted(tested, 'architecture')}"
    notes = [f"{len(everything) - len(shown)} more in {run.path / CSV_FILE}"] if len(shown) < len(everything) else []
    notes += ["* exported"] if any(row.exported for row in shown) else []
    notes += [f"truncated: {run.untrained} cut to the same sizes"] if truncation else []
    return "\n".join([title, aligned(head, body, left=1), *notes])


def _row(search: Search, evaluation: Evaluation, exported: set[str]) -> Row:
    first = search.qualities[0]
    baseline = search.truncation.get(evaluation.id)
    names = dict.fromkeys(["params", *search.qualities, *search.costs])
    return Row(
        evaluation=evaluation,
        fraction=search.fraction(evaluation),
        values={name: numbers.value(name, evaluation.objectives[name]) for name in names},
        truncated="" if baseline is None else numbers.value(first, baseline.objectives.get(first)),
        shape=shape_of(evaluation.architecture),
        exported=evaluation.id in exported,
        is_full=evaluation.id == search.full.id,
    )


def thinned(everything: list[Row]) -> list[Row]:
    """At most SHOWN_ROWS, evenly over the front; the exported ones always."""
    if len(everything) <= SHOWN_ROWS:
        return everything
    step = (len(everything) - 1) / (SHOWN_ROWS - 1)
    kept = {round(i * step) for i in range(SHOWN_ROWS)}
    return [row for index, row in enumerate(everything) if index in kept or row.exported]


def _span(sizes: list[int]) -> str:
    low, high = min(sizes, default=0), max(sizes, default=0)
    return str(low) if low == high else f"{low}-{high}"


def aligned(head: list[str], body: list[list[str]], *, left: int = 0) -> str:
    """Columns of equal width, the one at ``left`` flush left, a rule below the head."""
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *body]
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:]])
