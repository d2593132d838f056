"""Writes a sub-network of a finished run as a model of its own, with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omegaconf import DictConfig

from nas_llm.architecture import Architecture
from nas_llm.lightning.quiet import quiet
from nas_llm.stages.finished_run import FinishedRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from nas_llm.models.supernet import Supernet
    from nas_llm.peft.files import AdapterFile

Adapters = Literal["auto", "merged", "separate"]
ADAPTER = "adapter"

READS = ("architecture", "max_params", "max_latency_ms", "export.path", "export.adapters")
SUBNETS = "subnets"


def main(cfg: DictConfig) -> None:
    with quiet():
        _main(cfg)


def _main(cfg: DictConfig) -> None:
    run = FinishedRun(Path(cfg.run_dir))
    architecture = run.choose(cfg.architecture, cfg.max_params, cfg.max_latency_ms)
    path = export_subnetwork(
        run.supernet,
        architecture,
        run.tokenizer,
        run_dir=run.run_dir,
        path=cfg.export.path,
        adapters=cfg.export.adapters,
    )
    print(f"{architecture.id}: {architecture.summary()}\nwritten to {path}; how to load it: {path / 'README.md'}")


def export_subnetwork(
    supernet: Supernet,
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    *,
    run_dir: Path,
    path: str | Path | None = None,
    setting: str = "export.path",
    adapters: Adapters = "auto",
) -> Path:
    """Extracts ``architecture`` and writes it with its tokenizer and model card to ``path`` (run_dir/subnets/<id>).

    ``adapters``, where the super-network has some, are ``merged`` into the weights, written ``separate`` in
    ``adapter/``, or ``auto``: merged where nothing is lost. Errors name ``setting`` as the key that chooses the place.

    Raises:
        ValueError: ``path`` holds something that is not a model, the disk refuses the write, or adapters cannot be
            merged without loss.
    """
    from nas_llm.models.loading import save_pretrained
    from nas_llm.reporting.model_card import write_model_card

    target = Path(path) if path is not None else run_dir / SUBNETS / architecture.id
    if adapters not in ("auto", "merged", "separate"):
        raise ValueError(f"export.adapters={adapters}: allowed are auto, merged and separate")
    if adapters != "auto" and not supernet.attached:
        raise ValueError(f"export.adapters={adapters} cannot take effect: the run has no adapters; leave it out")
    small = supernet.extract(architecture)
    beside, note = _without_adapters(small, adapters, target) if supernet.attached else (None, None)

    def extra(folder: Path) -> None:
        if beside is not None:
            beside.write(folder / ADAPTER)
        write_model_card(
            folder, architecture, run_dir=run_dir, full=supernet.largest(), name=target.name, adapters=note
        )

    save_pretrained(small, target, tokenizer=tokenizer, extra=extra, setting=setting)
    return target


def _without_adapters(model: PreTrainedModel, adapters: Adapters, target: Path) -> tuple[AdapterFile | None, str]:
    """Takes the adapters off: into the weights (None), or as files; and what the model card says of it."""
    from nas_llm.peft.adapters import strip
    from nas_llm.peft.files import AdapterFile
    from nas_llm.peft.merging import merge, mergeable, stock_adapters

    if adapters == "merged" or (adapters == "auto" and mergeable(model)):
        merged = merge(model)
        return None, merged.summary
    if not stock_adapters(model):
        raise ValueError(
            "export.adapters=separate: these adapters keep the zeros of the weights, which peft's own layers do not; "
            "set export.adapters=merged"
        )
    beside = AdapterFile.of(model, str(target))
    strip(model)
    with_them = f'from peft import PeftModel; model = PeftModel.from_pretrained(model, "{target.name}/{ADAPTER}")'
    note = (
        f"Its low-rank adapters lie in {ADAPTER}/, in peft's format; the weights here are those of the base. After "
        f"loading it: `{with_them}`."
    )
    return beside, note
