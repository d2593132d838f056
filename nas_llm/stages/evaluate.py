"""Measures sub-networks of a finished run, or a saved model, on the run's test split and on tasks of lm-eval."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nas_llm.architecture import Architecture
from nas_llm.atomic_files import write_text
from nas_llm.config import build
from nas_llm.evaluation.harness import Harness, TaskMetric
from nas_llm.evaluation.harness_tasks import LoadedTasks
from nas_llm.lightning.quiet import quiet
from nas_llm.metrics import add_metrics
from nas_llm.objectives import Accuracy, Detailed, Details, GeneratedAccuracy, Objective, Sampled, TaskAccuracy, measure
from nas_llm.reporting import numbers
from nas_llm.run_directory import RESULTS_FILE
from nas_llm.run_fingerprints import recorded_fingerprints
from nas_llm.stages.data import recorded_data
from nas_llm.stages.harness_files import FOLDER, refuse_other_results, write_results
from nas_llm.stages.subjects import Subject, Subjects, chosen_subjects, is_of_another, refuse_other_networks
from nas_llm.stages.text_perplexity import measure_text

READS = (
    "model.attn_implementation",
    "data",
    "objectives",
    "harness",
    "trainer.accelerator",
    "trainer.enable_progress_bar",
    "evaluate",
    "text_perplexity",
    "architecture",
    "max_params",
    "max_latency_ms",
)
OVERRIDES = {
    "run_dir=DIR": "of the run whose sub-networks are measured on the test split; the results go there",
    "architecture=ID": "this one alone: an id of the archive, or largest, smallest, middle",
    "max_params=X": "instead: the best of at most so many parameters (up to 1: a fraction of the full network's)",
    "max_latency_ms=X": "instead: the best of at most this latency, where that was an objective",
    "objectives=[perplexity,latency]": "what is measured; any of the group's options, or [none]",
    "harness=tasks harness.tasks=[piqa,mmlu]": "tasks of lm-eval besides; or a paper's, as harness=paper1",
    "harness.task_path=FOLDER": "of task files of one's own; harness.limit=N: so many documents of each task",
    "evaluate.model_path=DIR objectives=[none] harness=paper1": "instead: a saved model; run_dir need hold no run then",
    "objectives=[generated_accuracy] evaluate.texts=true": "write down what each network generated, in run_dir/texts",
    "text_perplexity=file text_perplexity.path=FILE": "also the perplexity of a text; or wikitext2, wikitext103, c4",
    "data.batch_size=N": "records of a batch",
    "trainer.accelerator=cpu": "where; auto: on a GPU if there is one",
}
SPLIT = "test"
TASK_ACCURACY = f"objectives.{TaskAccuracy.name}"
TEXTS = "texts"  # the folder of a run that holds what its networks wrote


def main(cfg: DictConfig) -> None:
    """Measures the networks of ``chosen_subjects`` by the objectives and by the tasks of the harness."""
    with quiet():
        _main(cfg)


def _main(cfg: DictConfig) -> None:
    run_dir, harness = Path(cfg.run_dir), build(cfg.harness)
    bars = bool(cfg.trainer.enable_progress_bar) and sys.stderr.isatty()
    if harness is not None:
        _ = harness.loaded  # what is wrong with the tasks is told before a network is loaded
    subjects = chosen_subjects(cfg)
    if not cfg.evaluate.replace and (harness is not None or cfg.evaluate.model_path is not None):
        refuse_other_networks(run_dir, subjects)
    if harness is not None:
        _refuse_documents_of_the_search(cfg, subjects, harness.loaded, "harness.offset={}")
        if not cfg.evaluate.replace:
            refuse_other_results(run_dir, subjects, harness)
    texts = _text_perplexity(cfg, run_dir, subjects)
    if cfg.objectives:
        _measure_objectives(cfg, run_dir, subjects)
    if texts:
        print(f"\n{_aligned(texts)}")
    if harness is not None:
        _ask_tasks(run_dir, subjects, harness, replace=cfg.evaluate.replace, progress=bars)


def _measure_objectives(cfg: DictConfig, run_dir: Path, subjects: Subjects) -> None:
    data = recorded_data(cfg, subjects.tokenizer, subjects.supernet, run_dir)
    batches = list(data.test_dataloader())
    objectives: list[Objective] = [
        build(
            node,
            supernet=subjects.supernet,
            space=subjects.space,
            batches=batches,
            tokenizer=subjects.tokenizer,
            data=data,
            split=SPLIT,
        )
        for node in cfg.objectives.values()
    ]
    _refuse_questions_of_the_search(objectives, run_dir)
    _refuse_other_items(cfg)
    for objective in objectives:
        if isinstance(objective, TaskAccuracy):
            _refuse_documents_of_the_search(cfg, subjects, objective.loaded, f"{TASK_ACCURACY}.limit={{}}")
    if cfg.evaluate.texts and not any(isinstance(objective, Detailed) for objective in objectives):
        raise ValueError(
            "evaluate.texts=true cannot take effect where nothing is generated: add objectives=[generated_accuracy]"
        )
    samples = sum(len(batch["input_ids"]) for batch in batches)
    rows: list[tuple[str, Architecture, Mapping[str, float]]] = []
    parts: dict[str, list[tuple[str, Details]]] = {}
    for subject in subjects.members:
        architecture = subject.architecture
        details = {o.name: o.details(subjects.supernet, architecture) for o in objectives if isinstance(o, Detailed)}
        known = {name: made_of.whole.value for name, made_of in details.items()}
        values = measure(objectives, subjects.supernet, architecture, known)
        metrics = _metrics(subject, values, objectives, samples, details)
        replaced = _replaced(subjects) if cfg.evaluate.replace else None
        add_metrics(run_dir, [{**metric, **subjects.signature} for metric in metrics], without=replaced)
        if cfg.evaluate.texts:
            _write_texts(run_dir, subject, details)
        rows.append((subject.shown, architecture, values))
        for name, made_of in details.items():
            parts.setdefault(name, []).append((subject.shown, made_of))
    print(_table(rows, objectives))
    for of_objective in parts.values():
        print(f"\n{_table_of_parts(of_objective)}")
    print(f"\n{numbers.counted(samples, 'record')} of the split {SPLIT}; written to {run_dir / RESULTS_FILE}")


def _text_perplexity(cfg: DictConfig, run_dir: Path, subjects: Subjects) -> list[list[str]]:
    """The rows of a table; none where no text was asked for."""
    if not cfg.text_perplexity:
        return []
    networks = [
        (each.shown, {**each.where, **subjects.signature}, partial(subjects.activated, each))
        for each in subjects.members
    ]
    replaced = _replaced(subjects) if cfg.evaluate.replace else None
    return measure_text(cfg.text_perplexity, subjects.tokenizer, run_dir, networks, without=replaced)


def _replaced(subjects: Subjects) -> Callable[[Mapping[str, Any]], bool]:
    """Tells metrics that networks of the same names have left, but other ones."""
    return lambda metric: any(is_of_another(metric, each, subjects.network) for each in subjects.members)


def _ask_tasks(run_dir: Path, subjects: Subjects, harness: Harness, *, replace: bool, progress: bool) -> None:
    asked = []
    for subject in subjects.members:
        with subjects.activated(subject) as model:
            results = harness(model, subjects.tokenizer, progress=progress)
        write_results(run_dir, subject, subjects.network, results, replace=replace)
        asked.append((subject.shown, results.metrics))
    print(f"\n{_table_of_tasks(asked)}")
    print(f"\nwritten to {run_dir / FOLDER} and {run_dir / RESULTS_FILE}")


def _metrics(
    subject: Subject,
    values: Mapping[str, float],
    objectives: Sequence[Objective],
    samples: int,
    details: Mapping[str, Details],
) -> list[dict[str, Any]]:
    units = {"params": "parameters"} | {objective.name: objective.unit for objective in objectives}
    where = {**subject.where, "split": SPLIT}
    own = {objective.name: objective.samples for objective in objectives if isinstance(objective, Sampled)}
    metrics: list[dict[str, Any]] = [
        {"name": name, "value": value, "unit": units[name], **where, "samples": own.get(name, samples)}
        for name, value in values.items()
        if name not in details
    ]
    for name, made_of in details.items():
        of = {"name": name, "unit": units[name], **where}
        metrics.append({**of, **vars(made_of.whole)})
        metrics += [{**of, "data": task, **vars(part)} for task, part in made_of.parts.items()]
    return metrics


def _write_texts(run_dir: Path, subject: Subject, details: Mapping[str, Details]) -> None:
    """One line per question: what was asked, what the network wrote, and what was read from it."""
    lines = [json.dumps(record) for made_of in details.values() for record in made_of.records]
    write_text(run_dir / TEXTS / f"{subject.label}.jsonl", "".join(f"{line}\n" for line in lines))


def _refuse_questions_of_the_search(objectives: Sequence[Objective], run_dir: Path) -> None:
    """A search leaves out what its own `test_path` asks; what is asked else may not be among its questions.

    Raises:
        ValueError: some are.
    """
    settings = recorded_fingerprints(run_dir).get(f"objectives.{GeneratedAccuracy.name}")
    for objective in objectives:
        if settings is None or not isinstance(objective, GeneratedAccuracy):
            continue
        searched = {key: settings[key] for key in ("validation_path", "validation_limit", "tasks")}
        if objective.test_path is None or objective.test_path != settings["test_path"]:
            objective.refuse_shared(replace(objective, **searched, test_path=None, split="validation"))


def _refuse_other_items(cfg: DictConfig) -> None:
    """The items that chose the networks are the search's; `Accuracy` keeps them out of those that measure.

    Raises:
        ValueError: others are named.
    """
    key = f"objectives.{Accuracy.name}"
    settings, asked = recorded_fingerprints(cfg.run_dir).get(key), cfg.objectives.get(Accuracy.name)
    if settings is None or asked is None or cfg.evaluate.model_path is not None or asked.sets == settings["sets"]:
        return
    raise ValueError(
        f"{key}.sets cannot take effect: they are what the search has chosen by, and were others; what evaluate "
        f"measures on is {key}.test_sets, as {key}.test_sets.seed=3"
    )


def _refuse_documents_of_the_search(cfg: DictConfig, subjects: Subjects, asked: LoadedTasks, mend: str) -> None:
    """Sub-networks were chosen by the first documents of tasks, where the search had `task_accuracy`.

    Raises:
        ValueError: some of those are to measure them; `mend` is the setting that passes over so many.
    """
    settings = recorded_fingerprints(cfg.run_dir).get(TASK_ACCURACY)
    if settings is None or cfg.evaluate.model_path is not None:
        return
    fields = {key: value for key, value in settings.items() if key != "_target_"}
    searched = TaskAccuracy(**fields, supernet=subjects.supernet, tokenizer=subjects.tokenizer, split="validation")
    searched.refuse_shared(asked.documents, mend)


def _table_of_tasks(asked: Sequence[tuple[str, Sequence[TaskMetric]]]) -> str:
    """A line for each metric of each task; accuracies in percent, with their standard errors."""
    head = ["task", "metric", "shots", "n", "chance", *(name for name, _ in asked)]
    body = [
        [
            first.task,
            first.name if first.filter == "none" else f"{first.name} ({first.filter})",
            str(first.num_fewshot),
            str(first.samples),
            "" if first.chance is None else f"{first.chance:.1f}",
            *(_with_error(metric) for metric in of_all),
        ]
        for first, *others in zip(*(metrics for _, metrics in asked), strict=True)
        for of_all in [[first, *others]]
    ]
    cut = [metric for metric in asked[0][1] if metric.cut]
    notes = [f"{metric.task}: {metric.cut} prompts were cut from the left" for metric in _first_of_each_task(cut)]
    return "\n".join([_aligned([head, *body]), *notes])


def _first_of_each_task(metrics: Sequence[TaskMetric]) -> list[TaskMetric]:
    return list({metric.task: metric for metric in reversed(metrics)}.values())[::-1]


def _with_error(metric: TaskMetric) -> str:
    form = ".1f" if metric.unit == "%" else ".4g"
    error = "" if metric.standard_error is None else f" ± {metric.standard_error:{form}}"
    return f"{metric.value:{form}}{error}"


def _table_of_parts(parts: Sequence[tuple[str, Details]]) -> str:
    """Each task with its standard error, and the mean over them."""
    tasks = list(parts[0][1].parts)
    head = ["network", *(f"{task} (n={parts[0][1].parts[task].samples})" for task in tasks), "mean"]
    body = [
        [name, *(f"{e.value:.1f} ± {e.standard_error:.1f}" for e in (*made_of.parts.values(), made_of.whole))]
        for name, made_of in parts
    ]
    return _aligned([head, *body])


def _table(rows: Sequence[tuple[str, Architecture, Mapping[str, float]]], objectives: Sequence[Objective]) -> str:
    units = {"params": ""} | {objective.name: objective.unit for objective in objectives}
    head = ["network", *units, "shape"]
    body = [
        [name, *(numbers.value(key, values[key], unit) for key, unit in units.items()), architecture.summary()]
        for name, architecture, values in rows
    ]
    return _aligned([head, *body])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
