"""Measures latency of models, or what the package's own machinery costs: nas-llm bench latency, sandwich, ..."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig
from transformers import PreTrainedModel

from nas_llm.benchmarks.figures import table
from nas_llm.config import build
from nas_llm.lightning.quiet import quiet
from nas_llm.metrics import add_metrics
from nas_llm.peft.merging import merge, mergeable
from nas_llm.stages.finished_run import FinishedRun

READS = ("bench",)
OVERRIDES = {
    "bench=sandwich": "what is measured; also written nas-llm bench sandwich",
    "run_dir=DIR": "where the figures are written",
    "bench.repeats=N": "of each timed step; medians are shown",
    "bench.threads=N": "of PyTorch; null: one per core",
    "bench.batch_size=N": "records of a step",
    "bench.sequence_length=N": "tokens of a record",
    "bench=latency bench.paths=[DIR]": "of models: directories, hub names, embedded ones; ratios are to the first",
    "bench=latency bench.run_dir=DIR bench.architectures=[largest,ID]": "and of sub-networks of a run",
    "bench=latency bench.device=cpu bench.dtype=bfloat16": "where (null: a GPU if there is one), in which precision",
}


def main(cfg: DictConfig) -> None:
    """Run the benchmark of `cfg.bench`, print its rows and write them to the run directory."""
    with quiet():
        rows = build(cfg.bench, extract=extracted)()
    print(table(rows))
    add_metrics(Path(cfg.run_dir), [metric for row in rows for metric in row.metrics()])


def extracted(run_dir: str, names: Sequence[str]) -> Mapping[str, tuple[str, PreTrainedModel]]:
    """Sub-networks of a finished run by id or name, each with its id; adapters are merged where nothing is lost.

    Raises:
        ValueError: the run is not finished, or there is no such sub-network.
    """
    run = FinishedRun(Path(run_dir))
    found = {}
    for name in names:
        architecture = run.choose(name)
        small = run.supernet.extract(architecture)
        if run.supernet.attached and mergeable(small):
            merge(small)
        found[str(name)] = (architecture.id, small)
    return found
