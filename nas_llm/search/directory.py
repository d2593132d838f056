"""A search in a run directory: the full network, the search, the truncation baseline, and what was compared.

The largest, the middle and the smallest network are measured first, beside the budget: they fix the box that the
hypervolume is a part of, and the middle one's own hypervolume is what the search has to beat.

Truncation is what anyone could do without this package: the first units of every axis and the first layers of the
network as it was before sorting and training, sparse or quantised as the run's is. It is measured at the sizes of the
front, once the front is known.

Written: `archive.jsonl` (every value), `search.json` (objectives' units and directions, the front, the time, the
hypervolume over the evaluations of this search and of comparable ones before it) and the metrics of `results.json`.
Pictures, tables and the report are made from these files by `nas_llm.reporting`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nas_llm.architecture import Architecture
from nas_llm.atomic_files import read_json, write_json
from nas_llm.metrics import add_metrics
from nas_llm.search.archive import REFERENCE, TRUNCATION, Evaluation
from nas_llm.search.hypervolume import Box, HypervolumeCurve
from nas_llm.search.nsga2 import NSGA2
from nas_llm.search.pareto import COSTS, Front
from nas_llm.search.protocol import Search
from nas_llm.search.run import Evaluate, Ranks, SearchResult, measure_all, open_archive, run_search

ARCHIVE_FILE = "archive.jsonl"
SEARCH_FILE = "search.json"
HYPERVOLUME = "hypervolume"  # its key in search.json, and the metric's name
Log = Callable[[Mapping[str, float], int], None]
"""Metrics, and the number of evaluations so far."""


@dataclass(frozen=True)
class SearchOutcome:
    """The front, the search's own figures, the truncation baseline at the front's sizes (in the front's order), and the
    hypervolume over the evaluations with that of the middle network (None where no box could be measured).
    """

    front: Front
    result: SearchResult
    truncation: tuple[Evaluation, ...] = ()
    curve: HypervolumeCurve | None = None
    heuristic: float | None = None


def search_run_directory(
    run_dir: str | Path,
    search: Search,
    evaluate: Evaluate,
    *,
    units: Mapping[str, str],
    full: Architecture,
    split: str,
    samples: int,
    own_samples: Mapping[str, int] = MappingProxyType({}),
    untrained: Callable[[], Evaluate] | None = None,
    step: int = 0,
    progress: bool = True,
    log: Log | None = None,
) -> SearchOutcome:
    """Run `search` to its end, or continue it from the archive. Collective: every rank calls it, rank 0 writes.

    Args:
        search: the same on every rank.
        evaluate: values of one architecture of the super-network that are not known of it; at least the search's
            objectives and `params`.
        units: of the objectives.
        full: the whole network, measured beside the search.
        split: the data behind the values.
        samples: number of records of it.
        own_samples: of objectives that are measured on others, by their names.
        untrained: makes the baseline's `evaluate`, on the network as it was before sorting and training; None leaves
            it out, and so do objectives that all are costs.
        step: optimizer step of the super-network.
        log: takes `search/hypervolume` after every evaluation, on rank 0.

    Raises:
        ValueError: the archive cannot be read or written, or no architecture has finite values.
    """
    ranks = Ranks.current()
    archive = open_archive(Path(run_dir) / ARCHIVE_FILE, ranks)
    names = {"params", *search.directions}

    def reference(*architectures: Architecture) -> list[Evaluation]:
        return measure_all(
            architectures, evaluate, archive, names=names, source=REFERENCE, step=step, progress=False, ranks=ranks
        )

    middle = search.space.middle()
    extremes = reference(*dict.fromkeys([search.space.largest(), middle, search.space.smallest()]))
    curve, heuristic = _curves(extremes, middle, search)
    observe = None if curve is None else _observer(curve, log if ranks.rank == 0 else None)
    result = run_search(search, evaluate, archive, step=step, progress=progress, ranks=ranks, observe=observe)
    (whole,) = reference(full)
    measured = [evaluation for evaluation in archive.at(step) if names <= evaluation.objectives.keys()]
    front = Front.of(measured, search.directions, whole)
    baseline: list[Evaluation] = []
    qualities = [name for name in search.directions if name not in COSTS]
    if untrained is not None and qualities:
        sizes = [first_layers(evaluation.architecture) for evaluation in front.evaluations]
        baseline = measure_all(
            sizes, untrained(), archive, names=qualities, source=TRUNCATION, progress=progress, ranks=ranks
        )
    outcome = SearchOutcome(front, result, tuple(baseline), curve, heuristic)
    if ranks.rank == 0:
        _write(Path(run_dir), search, outcome, units, split, samples, own_samples, step)
    return outcome


def first_layers(architecture: Architecture) -> Architecture:
    """The same sizes in the first layers of the network, which is what truncation keeps."""
    layers = tuple(replace(layer, index=index) for index, layer in enumerate(architecture.layers))
    return replace(architecture, layers=layers)


def _curves(
    extremes: Sequence[Evaluation], middle: Architecture, search: Search
) -> tuple[HypervolumeCurve | None, float | None]:
    """An empty curve in the box of these networks, and the hypervolume of the middle one alone."""
    box = Box.of(extremes, search.directions)
    if box is None:
        return None, None
    (heuristic,) = (evaluation for evaluation in extremes if evaluation.architecture == middle)
    return HypervolumeCurve(box), HypervolumeCurve(box).add(heuristic)


def _observer(curve: HypervolumeCurve, log: Log | None) -> Callable[[Evaluation], None]:
    def observe(evaluation: Evaluation) -> None:
        value = curve.add(evaluation)
        if log is not None:
            log({f"search/{HYPERVOLUME}": value}, curve.evaluations)

    return observe


def _write(
    run_dir: Path,
    search: Search,
    outcome: SearchOutcome,
    units: Mapping[str, str],
    split: str,
    samples: int,
    own_samples: Mapping[str, int],
    step: int,
) -> None:
    result, full = outcome.result, outcome.front.full
    assert full is not None
    written: dict[str, Any] = {
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
    if isinstance(search, NSGA2):
        written["population"] = search.generation_size
    if outcome.curve is not None:
        written[HYPERVOLUME] = _hypervolume(run_dir, search, outcome.curve, outcome.heuristic, written)
    write_json(run_dir / SEARCH_FILE, written)
    data = {"split": split, "samples": samples}
    metrics = _metrics([full, *outcome.front.evaluations], units, data, own_samples)
    metrics += _metrics(outcome.truncation, units, {**data, "variant": TRUNCATION}, own_samples)
    if math.isfinite(result.search_overhead):
        overhead = {"name": "search_overhead", "value": result.search_overhead, "unit": "1"}
        metrics.append({**overhead, "samples": len(result.evaluations)})
    if outcome.curve is not None:
        value = {"name": HYPERVOLUME, "value": outcome.curve.value, "unit": "1", "variant": search.name}
        metrics.append({**value, **data, "evaluations": outcome.curve.evaluations})
    add_metrics(run_dir, metrics)


def _hypervolume(
    run_dir: Path, search: Search, curve: HypervolumeCurve, heuristic: float | None, written: Mapping[str, Any]
) -> dict[str, Any]:
    """The box, the middle network's hypervolume, and for each search the evaluations after which it rose, and to what.

    Curves of earlier searches of the same network by the same objectives in the same box stay.
    """
    path = run_dir / SEARCH_FILE
    before = read_json(path) if path.exists() else {}
    earlier = before.get(HYPERVOLUME, {})
    same = all(before.get(key) == written[key] for key in ("objectives", "step", "split", "samples"))
    comparable = same and earlier.get("box") == asdict(curve.box)
    curves = dict(earlier["curves"]) if comparable else {}
    rises = [*curve.rises, (curve.evaluations, curve.value)]
    curves[search.name] = [list(point) for point in dict.fromkeys(rises)]
    return {"box": asdict(curve.box), "heuristic": heuristic, "curves": curves}


def _metrics(
    evaluations: Iterable[Evaluation],
    units: Mapping[str, str],
    data: Mapping[str, Any],
    own_samples: Mapping[str, int],
) -> list[dict[str, Any]]:
    """One metric per value; only values that were measured on data say on which."""
    return [
        {"name": name, "value": value, "unit": units[name], "architecture": evaluation.id, "step": evaluation.step}
        | ({} if name in COSTS else {**data, "samples": own_samples.get(name, data["samples"])})
        for evaluation in evaluations
        for name, value in evaluation.objectives.items()
        if name in units
    ]
