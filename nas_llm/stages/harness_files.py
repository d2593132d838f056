"""The harness's results in a run directory: run_dir/harness/<id>.json, of one network and one way of asking each.

A file grows by the tasks that are asked later; what was asked in another way, or of another network, is never mixed
with it: it is refused, or measured anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas_llm.atomic_files import read_json, write_json
from nas_llm.evaluation.harness import KEY, Harness, HarnessResults, TaskMetric
from nas_llm.evaluation.harness_tasks import shots_of
from nas_llm.metrics import add_metrics
from nas_llm.stages.subjects import MEND, Subject, Subjects, is_of_another, other_name

FOLDER = "harness"
OWN = "nas_llm"  # what this program adds to the harness's JSON
BY_TASK = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
SPLIT = "test"


def refuse_other_results(run_dir: Path, subjects: Subjects, harness: Harness) -> None:
    """Compare what the run directory has of these networks with what would be added to it.

    Raises:
        ValueError: it is of another network, or was measured with other settings.
    """
    for subject in subjects.members:
        file = run_dir / FOLDER / f"{subject.label}.json"
        if file.exists():
            _refuse_other_file(file, subject, subjects.network, harness)


def _refuse_other_file(file: Path, subject: Subject, network: str, harness: Harness) -> None:
    before = read_json(file, "results", "n-shot")
    own = before.get(OWN, {})
    if own.get("network") != network:
        raise ValueError(
            f"{file} holds results of another network (weights {own.get('network')}, here {network}): choose another "
            f"run_dir={other_name(subject)}, {MEND}"
        )
    for key, value in harness.settings.items():
        if own["settings"].get(key) != value:
            raise _other(f"{KEY}{key}", value, own["settings"].get(key), file)
    for leaf, task in harness.loaded.leaves.items():
        if before["n-shot"].get(leaf, shots_of(task)) != shots_of(task):
            raise _other(f"{KEY}num_fewshot", f"{shots_of(task)} for {leaf}", before["n-shot"][leaf], file)
        span = harness.loaded.documents[leaf]
        if own["documents"].get(leaf, [span.start, span.stop]) != [span.start, span.stop]:
            raise ValueError(
                f"{file} was measured on documents {own['documents'][leaf]} of {leaf}, whose data have changed "
                f"({[span.start, span.stop]} now): {MEND.removeprefix('or ')}"
            )


def _other(key: str, now: Any, before: Any, file: Path) -> ValueError:
    shown = ["null" if value is None else value for value in (now, before)]
    return ValueError(
        f"{key}={shown[0]} differs from {shown[1]} that {file} was measured with, and results of different settings "
        f"are not mixed: give the same, choose another run_dir=, {MEND}"
    )


def write_results(
    run_dir: Path, subject: Subject, network: str, results: HarnessResults, *, replace: bool = False
) -> None:
    """Add them to run_dir/harness/<id>.json and to results.json; ``replace``: in the place of all that was there."""
    file = run_dir / FOLDER / f"{subject.label}.json"
    merged: dict[str, Any] = dict(results.json)
    if file.exists() and not replace:
        before = read_json(file)
        for part in BY_TASK:
            if part in before or part in merged:
                merged[part] = {**before.get(part, {}), **merged.get(part, {})}
        kept = {key: {**before[OWN][key], **merged[OWN][key]} for key in ("documents", "cut")}
        merged[OWN] = {**merged[OWN], **kept}
    merged[OWN] = {**merged[OWN], **subject.where, "network": network}
    write_json(file, merged)
    metrics = [{**_metric(metric), **subject.where, "network": network} for metric in results.metrics]

    def replaced(metric: Mapping[str, Any]) -> bool:
        return _is_of(metric, subject) or is_of_another(metric, subject, network)

    add_metrics(run_dir, metrics, without=replaced if replace else None)


def _metric(metric: TaskMetric) -> dict[str, Any]:
    optional = {
        "variant": None if metric.filter == "none" else metric.filter,
        "chance": metric.chance,
        "cut": metric.cut or None,
    }
    return {
        "name": metric.name,
        "value": metric.value,
        "unit": metric.unit,
        "data": metric.task,
        "split": SPLIT,
        "samples": metric.samples,
        "standard_error": metric.standard_error,
        "num_fewshot": metric.num_fewshot,
        **{key: value for key, value in optional.items() if value is not None},
    }


def _is_of(metric: Mapping[str, Any], subject: Subject) -> bool:
    """Whether the harness measured it, of that network."""
    named = all(metric.get(key) == value for key, value in subject.where.items())
    return named and "num_fewshot" in metric and "network" in metric
