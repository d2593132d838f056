"""Measures sub-networks of a finished run on its test split, which neither training nor search has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nas_llm.architecture import Architecture
from nas_llm.config import build
from nas_llm.lightning.quiet import quiet
from nas_llm.objectives import Objective, measure
from nas_llm.reporting import numbers
from nas_llm.run_directory import add_metrics
from nas_llm.stages.data import recorded_data
from nas_llm.stages.export import SUBNETS
from nas_llm.stages.finished_run import ARCHIVE, FinishedRun
from nas_llm.stages.search import load_supernet

READS = (
    "model.attn_implementation",
    "data",
    "objectives",
    "trainer.accelerator",
    "evaluate",
    "architecture",
    "max_params",
    "max_latency_ms",
)
SPLIT = "test"


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
    refuse_chosen_by(objectives, run.run_dir)
    samples = sum(len(batch["input_ids"]) for batch in batches)
    rows = []
    for name, architecture in chosen.items():
        details = {o.name: o.details(supernet, architecture) for o in objectives if isinstance(o, Detailed)}
        known = {name: made_of.whole.value for name, made_of in details.items()}
        values = measure(objectives, supernet, architecture, known)
        add_metrics(run.run_dir, _metrics(architecture, values, objectives, samples, details))
        if cfg.evaluate.texts:
            _write_texts(run.run_dir, architecture, details)
        rows.append((name, architecture, values))
    print(_table(rows, objectives))
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


def _metrics(
    architecture: Architecture, values: Mapping[str, float], objectives: Sequence[Objective], samples: int
) -> list[dict[str, Any]]:
    units = {"params": "parameters"} | {objective.name: objective.unit for objective in objectives}
    where = {"architecture": architecture.id, "split": SPLIT, "samples": samples}
    return [{"name": name, "value": value, "unit": units[name], **where} for name, value in values.items()]


def _table(rows: Sequence[tuple[str, Architecture, Mapping[str, float]]], objectives: Sequence[Objective]) -> str:
    units = {"params": ""} | {objective.name: objective.unit for objective in objectives}
    head = ["network", *units, "shape"]
    body = [
        [name, *(numbers.value(key, values[key], unit) for key, unit in units.items()), architecture.summary()]
        for name, architecture, values in rows
    ]
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *body]
    )
