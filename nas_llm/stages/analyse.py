"""Looks at a network before it is trained: nas-llm analyse importance compares what sorting does to sub-networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nas_llm.analysis import Findings, Subject
from nas_llm.config import build
from nas_llm.lightning.quiet import quiet
from nas_llm.metrics import add_metrics
from nas_llm.models.supernet import Supernet
from nas_llm.models.tokenizer import load_tokenizer
from nas_llm.stages.data import prepared_data
from nas_llm.stages.search import device, untrained

READS = ("analysis", "model", "data", "search_space", "trainer.accelerator")
OVERRIDES = {
    "analysis=importance": "or sampling; also written nas-llm analyse importance",
    "run_dir=DIR": "where the figures are written",
    "model.path=PATH": "a directory, a hub name, or an embedded model: microworld_llama, microworld_neox",
    "data=text data.path=PATH": "a file, a folder or a hub name; data=instruction for Alpaca-form records",
    "search_space=joint": "that the sub-networks are drawn from; any of the group's options",
    "analysis.compare=[magnitude,activation]": "importance: the methods that are compared; null: all",
    "analysis.subnetworks=N": "importance: sub-networks that each is measured on",
    "analysis.batches=N": "importance: of the validation split; null: all",
    "analysis=sampling analysis.steps=N": "optimizer steps that each sampler is asked for",
}


def main(cfg: DictConfig) -> None:
    """Run the analysis of `cfg.analysis`, print its table and write its figures to the run directory."""
    with quiet():
        findings: Findings = build(cfg.analysis)(subject(cfg))
    add_metrics(Path(cfg.run_dir), findings.metrics)
    print(findings.table)
    print("\n".join(f"written: {path}" for path in findings.files))


def subject(cfg: DictConfig) -> Subject:
    """The network, the space and the data of the configuration."""
    words = cfg.model.tokenizer_path or cfg.model.path
    tokenizer = load_tokenizer(
        words,
        trust_remote_code=cfg.model.trust_remote_code,
        setting="model.tokenizer_path" if cfg.model.tokenizer_path else "model.path",
    )

    made: list[Any] = []

    def load() -> Supernet:
        return untrained(cfg).to(device(cfg)).eval()

    def data(supernet: Supernet) -> Any:
        if not made:
            made.append(prepared_data(cfg, tokenizer, supernet))
        return made[0]

    return Subject(
        load=load,
        space_of=lambda supernet: build(cfg.search_space, supernet=supernet),
        data=data,
        tokenizer=tokenizer,
        run_dir=Path(cfg.run_dir),
    )
