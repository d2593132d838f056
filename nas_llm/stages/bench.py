"""Measures what the package's own machinery costs, beside limits: nas-llm bench sandwich, distillation, ..."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from nas_llm.benchmarks.sandwich import table
from nas_llm.config import build
from nas_llm.lightning.quiet import quiet
from nas_llm.run_directory import add_metrics

READS = ("bench",)


def main(cfg: DictConfig) -> None:
    """Run the benchmark of `cfg.bench`, print its figures and write them to the run directory."""
    with quiet():
        figures = build(cfg.bench)()
    print(table(figures))
    metrics = [{"name": f.name, "value": f.value, "unit": "1", "limit": f.limit, "details": f.details} for f in figures]
    add_metrics(Path(cfg.run_dir), metrics)
