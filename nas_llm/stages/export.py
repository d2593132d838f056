"""Writes a sub-network of a finished run as a model of its own, with a model card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from omegaconf import DictConfig

from nas_llm.architecture import Architecture
from nas_llm.lightning.quiet import quiet
from nas_llm.reporting.operator_files import NETWORKS_FILE, NetworkRow, read_networks
from nas_llm.stages.finished_run import FinishedRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from nas_llm.models.supernet import Supernet
    from nas_llm.peft.files import AdapterFile

Adapters = Literal["auto", "merged", "separate"]
ADAPTER = "adapter"

Format = Literal["hf", "decilm"]
READS = ("architecture", "max_params", "max_latency_ms", "export.path", "export.adapters", "export.format")
OVERRIDES = {
    "run_dir=DIR": "of the run whose sub-network is written",
    "architecture=ID": "an id of the archive, or the beginning of it; or largest, smallest, middle",
    "max_params=X": "instead: the best of at most so many parameters (up to 1: a fraction of the full network's)",
    "max_latency_ms=X": "instead: the best of at most this latency, where that was an objective",
    "export.path=DIR": "where to; null: run_dir/subnets/ID",
    "export.adapters=merged": "into the weights; separate: in adapter/, for peft; auto: merged where nothing is lost",
    "export.format=hf": "or decilm, the layout that vLLM serves",
}
SUBNETS, NETWORKS = "subnets", "networks"
ANOTHER = "another model"


def main(cfg: DictConfig) -> None:
    with quiet():
        _main(cfg)


def _main(cfg: DictConfig) -> None:
    run = FinishedRun(Path(cfg.run_dir))
    if (run.run_dir / NETWORKS_FILE).is_file():
        _export_network(cfg, run)
        return
    architecture = run.choose(cfg.architecture, cfg.max_params, cfg.max_latency_ms)
    before = _held(Path(cfg.export.path)) if cfg.export.path is not None else None
    path = export_subnetwork(
        run.supernet,
        architecture,
        run.tokenizer,
        run_dir=run.run_dir,
        path=cfg.export.path,
        adapters=cfg.export.adapters,
        format=cfg.export.format,
    )
    print(f"{architecture.id}: {architecture.summary()}\nwritten to {path}; how to load it: {path / 'README.md'}")
    if before not in (None, architecture.id):
        print(f"replaced {before if before == ANOTHER else f'sub-network {before}'}, which was there")


def _held(path: Path) -> str | None:
    """What an earlier export left in ``path``: the id of the sub-network, or in words, or None."""
    if not (path / "config.json").is_file():
        return None
    card = path / "README.md"
    text = card.read_text(errors="replace") if card.is_file() else ""
    found = re.search(r"^# .*: (?:sub-)?network ([0-9a-f]+)$", text, re.MULTILINE)
    return ANOTHER if found is None else found[1]


def _export_network(cfg: DictConfig, run: FinishedRun) -> None:
    """A network of operators that a search over them left, in another place or format."""
    from nas_llm.models.supernet import Supernet

    found = sorted(folder.name for folder in (run.run_dir / NETWORKS).glob("*") if (folder / "config.json").is_file())
    if cfg.architecture not in found:
        raise ValueError(
            f"architecture={cfg.architecture}: allowed is one of the networks in {run.run_dir / NETWORKS}, "
            f"{', '.join(found) or 'which holds none'}"
        )
    supernet = Supernet.from_pretrained(run.run_dir / NETWORKS / str(cfg.architecture))
    path = export_subnetwork(
        supernet,
        supernet.largest(),
        run.tokenizer,
        run_dir=run.run_dir,
        path=cfg.export.path or run.run_dir / SUBNETS / f"{cfg.architecture}-{cfg.export.format}",
        adapters=cfg.export.adapters,
        format=cfg.export.format,
        found=[row for row in read_networks(run.run_dir) if row.path == f"{NETWORKS}/{cfg.architecture}"],
    )
    print(f"{cfg.architecture}: written to {path}; how to load it: {path / 'README.md'}")


def export_subnetwork(
    supernet: Supernet,
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    *,
    run_dir: Path,
    path: str | Path | None = None,
    setting: str = "export.path",
    adapters: Adapters = "auto",
    format: Format = "hf",
    found: Sequence[NetworkRow] = (),
) -> Path:
    """Extracts ``architecture`` and writes it with its tokenizer and model card to ``path`` (run_dir/subnets/<id>).

    ``format`` is ``hf``, as :func:`nas_llm.save_pretrained` writes models, or ``decilm``, which vLLM serves
    (``models/decilm.py``). ``adapters``, where the super-network has some, are ``merged`` into the weights, written
    ``separate`` in ``adapter/``, or ``auto``: merged where nothing is lost. Errors name ``setting`` as the key that
    chooses the place.

    Raises:
        ValueError: ``path`` holds something that is not a model, the disk refuses the write, adapters cannot be
            merged without loss, or the network has no place in the format.
    """
    from nas_llm.models.decilm import decilm_of, save_decilm
    from nas_llm.models.origin import operators_of
    from nas_llm.models.saving import save_pretrained
    from nas_llm.reporting.model_card import write_model_card

    target = Path(path) if path is not None else run_dir / SUBNETS / architecture.id
    if adapters not in ("auto", "merged", "separate"):
        raise ValueError(f"export.adapters={adapters}: allowed are auto, merged and separate")
    if adapters != "auto" and not supernet.attached:
        raise ValueError(f"export.adapters={adapters} cannot take effect: the run has no adapters; leave it out")
    if format not in get_args(Format):
        raise ValueError(f"export.format={format}: allowed are {', '.join(get_args(Format))}")
    small = supernet.extract(architecture)
    if format == "decilm" and supernet.attached:
        adapters = _merged_alone(small, adapters)
    beside, note = None, None
    if supernet.attached:
        from nas_llm.peft.merging import MergeDifference

        try:
            beside, note = _without_adapters(small, adapters, target)
        except MergeDifference as error:
            if adapters != "auto" or format == "decilm":
                raise
            small = supernet.extract(architecture)  # whose adapters are not merged
            beside, note = _without_adapters(small, "separate", target)
            note = f"{note} They are not merged, for {str(error).partition(':')[0]}."
    now = supernet.num_parameters(architecture, adapters=beside is not None)
    notes = [] if note is None else [note]
    network = operators_of(small)
    blocks = [] if network is None else network.to_dict()["blocks"]
    if format == "decilm":
        notes.append(decilm_of(small).summary)

    def extra(folder: Path) -> None:
        if beside is not None:
            beside.write(folder / ADAPTER)
        write_model_card(
            folder,
            architecture,
            run_dir=run_dir,
            full=supernet.largest(),
            name=target.name,
            notes=[note for note in notes if note],
            operators=blocks,
            params=(supernet.num_base_parameters, now),
            found=found,
        )

    save = save_decilm if format == "decilm" else save_pretrained
    save(small, target, tokenizer=tokenizer, extra=extra, setting=setting)
    return target


def _merged_alone(model: PreTrainedModel, adapters: Adapters) -> Adapters:
    """How adapters go into a format that has no place for them beside the weights. Raises ValueError where they
    cannot."""
    from nas_llm.peft.merging import mergeable

    if adapters == "separate" or (adapters == "auto" and not mergeable(model)):
        raise ValueError(
            f"export.adapters={adapters}: export.format=decilm has weights alone, into which the adapters are merged, "
            "and dense ones cannot be merged into sparse or quantised weights: set export.format=hf"
        )
    return "merged"


def _without_adapters(model: PreTrainedModel, adapters: Adapters, target: Path) -> tuple[AdapterFile | None, str]:
    """Takes the adapters off: into the weights (None), or as files; and what the model card says of it."""
    from nas_llm.models.fingerprint import fingerprint_of_model
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
    beside = replace(beside, base=fingerprint_of_model(model))
    with_them = f'from peft import PeftModel; model = PeftModel.from_pretrained(model, "{target.name}/{ADAPTER}")'
    note = (
        f"Its low-rank adapters lie in {ADAPTER}/, in peft's format; the weights here are those of the base. After "
        f"loading it: `{with_them}`."
    )
    return beside, note
