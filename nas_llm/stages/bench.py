"""Measures what the package's own machinery costs, beside limits: nas-llm bench sandwich, distillation, ..."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from nas_llm.benchmarks.sandwich import table
from nas_llm.config import build
from nas_llm.lightning.quiet import quiet
from nas_llm.run_directory import add_metrics

READS = ("bench",)
OVERRIDES = {
    "bench=sandwich": "what is measured; also written nas-llm bench sandwich",
    "run_dir=DIR": "where the figures are written",
    "bench.repeats=N": "of each timed step; medians are shown",
    "bench.threads=N": "of PyTorch; null: one per core",
    "bench.batch_size=N": "records of a step",
    "bench.sequence_length=N": "tokens of a record",
}


def main(cfg: DictConfig) -> None:
    """Run the benchmark of `cfg.bench`, print its figures and write them to the run directory."""
    with quiet():
        figures = build(cfg.bench)()
    print(table(figures))
    metrics = [{"name": f.name, "value": f.value, "unit": "1", "limit": f.limit, "details": f.details} for f in figures]
    add_metrics(Path(cfg.run_dir), metrics)
