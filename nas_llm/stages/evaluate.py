"""Measures sub-networks of a finished run on its test split, which neither training nor search has seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nas_llm.architecture import Architecture
from nas_llm.config import build
from nas_llm.lightning.quiet import quiet
from nas_llm.models.supernet import Supernet
from nas_llm.objectives import Detailed, Details, GeneratedAccuracy, Objective, measure
from nas_llm.reporting import numbers
from nas_llm.run_directory import add_metrics, recorded_fingerprints, write_text
from nas_llm.stages.data import recorded_data
from nas_llm.stages.export import SUBNETS
from nas_llm.stages.finished_run import ARCHIVE, FinishedRun
from nas_llm.stages.search import load_supernet
from nas_llm.stages.text_perplexity import measure_text

READS = (
    "model.attn_implementation",
    "data",
    "objectives",
    "trainer.accelerator",
    "evaluate.texts",
    "text_perplexity",
    "architecture",
    "max_params",
    "max_latency_ms",
)
OVERRIDES = {
    "run_dir=DIR": "of the run whose sub-networks are measured on the test split",
    "architecture=ID": "this one alone: an id of the archive, or largest, smallest, middle",
    "max_params=X": "instead: the best of at most so many parameters (up to 1: a fraction of the full network's)",
    "max_latency_ms=X": "instead: the best of at most this latency, where that was an objective",
    "objectives=[perplexity,latency]": "what is measured; any of the group's options",
    "objectives=[generated_accuracy] evaluate.texts=true": "write down what each network generated, in run_dir/texts",
    "text_perplexity=file text_perplexity.path=FILE": "also the perplexity of a text; or wikitext2, wikitext103, c4",
    "data.batch_size=N": "records of a batch",
    "trainer.accelerator=cpu": "where; auto: on a GPU if there is one",
}
SPLIT = "test"
TEXTS = "texts"  # the folder of a run that holds what its networks wrote


def main(cfg: DictConfig) -> None:
    """By ``architecture`` or a budget one sub-network; else the largest, every exported one (the middle one where the
    run was not searched, or nothing of it exported) and the smallest.
    """
    with quiet():
        _main(cfg)


def _main(cfg: DictConfig) -> None:
    run = FinishedRun(Path(cfg.run_dir))
    chosen = _chosen(run, cfg)
    supernet = load_supernet(run.run_dir, cfg)
    data = recorded_data(cfg, run.tokenizer, supernet, run.run_dir)
    batches = list(data.test_dataloader())
    objectives: list[Objective] = [
        build(
            node,
            supernet=supernet,
            space=run.space,
            batches=batches,
            tokenizer=run.tokenizer,
            data=data,
            split=SPLIT,
        )
        for node in cfg.objectives.values()
    ]
    _refuse_questions_of_the_search(objectives, run.run_dir)
    if cfg.evaluate.texts and not any(isinstance(objective, Detailed) for objective in objectives):
        raise ValueError(
            "evaluate.texts=true cannot take effect where nothing is generated: add objectives=[generated_accuracy]"
        )
    samples = sum(len(batch["input_ids"]) for batch in batches)
    texts = _text_perplexity(cfg, run, supernet, chosen)
    rows, parts = [], []
    for name, architecture in chosen.items():
        details = {o.name: o.details(supernet, architecture) for o in objectives if isinstance(o, Detailed)}
        known = {name: made_of.whole.value for name, made_of in details.items()}
        values = measure(objectives, supernet, architecture, known)
        add_metrics(run.run_dir, _metrics(architecture, values, objectives, samples, details))
        if cfg.evaluate.texts:
            _write_texts(run.run_dir, architecture, details)
        rows.append((name, architecture, values))
        parts += [(name, made_of) for made_of in details.values()]
    print(_table(rows, objectives))
    if parts:
        print(f"\n{_table_of_parts(parts)}")
    if texts:
        print(f"\n{_aligned(texts)}")
    print(f"\n{numbers.counted(samples, 'record')} of the split {SPLIT}; written to {run.run_dir / 'results.json'}")


def _chosen(run: FinishedRun, cfg: DictConfig) -> dict[str, Architecture]:
    if any(value is not None for value in (cfg.architecture, cfg.max_params, cfg.max_latency_ms)):
        architecture = run.choose(cfg.architecture, cfg.max_params, cfg.max_latency_ms)
        return {cfg.architecture or architecture.id: architecture}
    searched = (run.run_dir / ARCHIVE).exists()
    known = {evaluation.id: evaluation.architecture for evaluation in run.evaluations} if searched else {}
    exported = sorted(path.name for path in (run.run_dir / SUBNETS).glob("*") if path.name in known)
    between = {id: known[id] for id in exported} or {"middle": run.space.middle()}
    return {"largest": run.space.largest(), **between, "smallest": run.space.smallest()}


def _text_perplexity(
    cfg: DictConfig, run: FinishedRun, supernet: Supernet, chosen: Mapping[str, Architecture]
) -> list[list[str]]:
    """The rows of a table; none where no text was asked for."""
    if not cfg.text_perplexity:
        return []
    networks = [(name, {"architecture": a.id}, partial(supernet.activate, a)) for name, a in chosen.items()]
    return measure_text(cfg.text_perplexity, run.tokenizer, run.run_dir, networks)


def _metrics(
    architecture: Architecture,
    values: Mapping[str, float],
    objectives: Sequence[Objective],
    samples: int,
    details: Mapping[str, Details],
) -> list[dict[str, Any]]:
    units = {"params": "parameters"} | {objective.name: objective.unit for objective in objectives}
    where = {"architecture": architecture.id, "split": SPLIT}
    metrics: list[dict[str, Any]] = [
        {"name": name, "value": value, "unit": units[name], **where, "samples": samples}
        for name, value in values.items()
        if name not in details
    ]
    for name, made_of in details.items():
        of = {"name": name, "unit": units[name], **where}
        metrics.append({**of, **vars(made_of.whole)})
        metrics += [{**of, "data": task, **vars(part)} for task, part in made_of.parts.items()]
    return metrics


def _write_texts(run_dir: Path, architecture: Architecture, details: Mapping[str, Details]) -> None:
    """One line per question: what was asked, what the network wrote, and what was read from it."""
    lines = [json.dumps(record) for made_of in details.values() for record in made_of.records]
    write_text(run_dir / TEXTS / f"{architecture.id}.jsonl", "".join(f"{line}\n" for line in lines))


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
