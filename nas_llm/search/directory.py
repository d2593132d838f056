"""A search in a run directory: the full network, the search, the truncation baseline, and what was compared.

Truncation is what anyone could do without this package: the first units of every axis and the first layers of the
network as it was before sorting and training. It is measured at the sizes of the front, once the front is known.

Written: `archive.jsonl` (every value), `search.json` (objectives' units and directions, the front, the time) and the
metrics of `results.json`. Pictures, tables and the report are made from these files by `nas_llm.reporting`.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nas_llm.architecture import Architecture
from nas_llm.run_directory import add_metrics, write_json
from nas_llm.search.archive import REFERENCE, TRUNCATION, Evaluation
from nas_llm.search.pareto import COSTS, Front
from nas_llm.search.protocol import Search
from nas_llm.search.run import Evaluate, Ranks, SearchResult, measure_all, open_archive, run_search

ARCHIVE_FILE = "archive.jsonl"
SEARCH_FILE = "search.json"


@dataclass(frozen=True)
class SearchOutcome:
    """The front, the search's own figures, and the truncation baseline at the front's sizes (in the front's order)."""

    front: Front
    result: SearchResult
    truncation: tuple[Evaluation, ...] = ()


def search_run_directory(
    run_dir: str | Path,
    search: Search,
    evaluate: Evaluate,
    *,
    units: Mapping[str, str],
    full: Architecture,
    split: str,
    samples: int,
    untrained: Callable[[], Evaluate] | None = None,
    step: int = 0,
    progress: bool = True,
) -> SearchOutcome:
    """Run `search` to its end, or continue it from the archive. Collective: every rank calls it, rank 0 writes.

    Args:
        search: the same on every rank.
        evaluate: values of one architecture of the super-network; at least the search's objectives and `params`.
        units: of the objectives.
        full: the whole network, measured beside the search.
        split: the data behind the values.
        samples: number of records of it.
        untrained: makes the baseline's `evaluate`, on the network as it was before sorting and training; None leaves
            it out.
        step: optimizer step of the super-network.

    Raises:
        ValueError: the archive cannot be read or written, or no architecture has finite values.
    """
    ranks = Ranks.current()
    archive = open_archive(Path(run_dir) / ARCHIVE_FILE, ranks)
    names = {"params", *search.directions}
    result = run_search(search, evaluate, archive, step=step, progress=progress, ranks=ranks)
    (whole,) = measure_all(
        [full], evaluate, archive, names=names, source=REFERENCE, step=step, progress=False, ranks=ranks
    )
    measured = [evaluation for evaluation in archive.at(step) if names <= evaluation.objectives.keys()]
    front = Front.of(measured, search.directions, whole)
    baseline: list[Evaluation] = []
    if untrained is not None:
        sizes = [first_layers(evaluation.architecture) for evaluation in front.evaluations]
        qualities = [name for name in search.directions if name not in COSTS]
        baseline = measure_all(
            sizes, untrained(), archive, names=qualities, source=TRUNCATION, progress=progress, ranks=ranks
        )
    outcome = SearchOutcome(front, result, tuple(baseline))
    if ranks.rank == 0:
        _write(Path(run_dir), search, outcome, units, split, samples, step)
    return outcome


def first_layers(architecture: Architecture) -> Architecture:
    """The same sizes in the first layers of the network, which is what truncation keeps."""
    layers = tuple(replace(layer, index=index) for index, layer in enumerate(architecture.layers))
    return Architecture(architecture.hidden, layers)


def _write(
    run_dir: Path,
    search: Search,
    outcome: SearchOutcome,
    units: Mapping[str, str],
    split: str,
    samples: int,
    step: int,
) -> None:
    result, full = outcome.result, outcome.front.full
    assert full is not None
    written = {
        "searcher": search.name,
        "objectives": {
            name: {"unit": units[name], "direction": direction} for name, direction in search.directions.items()
        },
        "full": full.id,
        "step": step,
        "split": split,
        "samples": samples,
        "evaluations": len(result.evaluations),
        "from_archive": result.from_archive,
        "evaluation_seconds": result.evaluation_seconds,
        "search_seconds": result.search_seconds,
        "search_overhead": result.search_overhead if math.isfinite(result.search_overhead) else None,
        "front": [evaluation.id for evaluation in outcome.front.evaluations],
    }
    write_json(run_dir / SEARCH_FILE, written)
    data = {"split": split, "samples": samples}
    metrics = _metrics([full, *outcome.front.evaluations], units, data)
    metrics += _metrics(outcome.truncation, units, {**data, "variant": TRUNCATION})
    if math.isfinite(result.search_overhead):
        overhead = {"name": "search_overhead", "value": result.search_overhead, "unit": "1", "samples": result.measured}
        metrics.append(overhead)
    add_metrics(run_dir, metrics)


def _metrics(
    evaluations: Iterable[Evaluation], units: Mapping[str, str], data: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One metric per value; only values that were measured on data say on which."""
    return [
        {"name": name, "value": value, "unit": units[name], "architecture": evaluation.id, "step": evaluation.step}
        | ({} if name in COSTS else dict(data))
        for evaluation in evaluations
        for name, value in evaluation.objectives.items()
        if name in units
    ]
