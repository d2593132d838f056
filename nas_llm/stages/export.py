"""Writes a sub-network of a finished run as a model of its own, with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from nas_llm.architecture import Architecture
from nas_llm.lightning.quiet import quiet
from nas_llm.stages.finished_run import FinishedRun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from nas_llm.models.supernet import Supernet

READS = ("architecture", "max_params", "max_latency_ms", "export.path")
SUBNETS = "subnets"


def main(cfg: DictConfig) -> None:
    with quiet():
        _main(cfg)


def _main(cfg: DictConfig) -> None:
    run = FinishedRun(Path(cfg.run_dir))
    architecture = run.choose(cfg.architecture, cfg.max_params, cfg.max_latency_ms)
    path = export_subnetwork(run.supernet, architecture, run.tokenizer, run_dir=run.run_dir, path=cfg.export.path)
    print(f"{architecture.id}: {architecture.summary()}\nwritten to {path}; how to load it: {path / 'README.md'}")


def export_subnetwork(
    supernet: Supernet,
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    *,
    run_dir: Path,
    path: str | Path | None = None,
    setting: str = "export.path",
) -> Path:
    """Extracts ``architecture`` and writes it with its tokenizer and model card to ``path`` (run_dir/subnets/<id>).

    Errors name ``setting`` as the key that chooses the place.

    Raises:
        ValueError: ``path`` holds something that is not a model, or the disk refuses the write.
    """
    from nas_llm.models.loading import save_pretrained
    from nas_llm.reporting.model_card import write_model_card

    target = Path(path) if path is not None else run_dir / SUBNETS / architecture.id
    small = supernet.extract(architecture)

    def card(folder: Path) -> None:
        write_model_card(folder, architecture, run_dir=run_dir, full=supernet.largest(), name=target.name)

    save_pretrained(small, target, tokenizer=tokenizer, extra=card, setting=setting)
    return target
