"""Makes a network small, sparse or quantised by a method that others are compared with (a baseline); trains nothing."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nas_llm.architecture import Architecture
from nas_llm.atomic_files import write_json
from nas_llm.baselines import Baseline, Batch, Pruned
from nas_llm.config import build
from nas_llm.lightning.quiet import quiet
from nas_llm.metrics import add_metrics
from nas_llm.models.fingerprint import fingerprint
from nas_llm.models.model_directory import precision_of
from nas_llm.models.origin import operators_of
from nas_llm.models.quantized_linear import quantized_modules
from nas_llm.models.saving import save_pretrained
from nas_llm.models.tokenizer import load_tokenizer
from nas_llm.objectives import mean_token_loss
from nas_llm.reporting import numbers, write_baseline_card
from nas_llm.run_directory import BASELINE_FILE, MODEL
from nas_llm.sparsity import SPARSE, Zeros, zeros_of_model
from nas_llm.stages.data import prepared_data
from nas_llm.stages.search import device, untrained

READS = ("model", "data", "baseline", "trainer.accelerator")
OVERRIDES = {
    "baseline=wanda baseline.pattern=2:4": "the method and its settings; any option of the group",
    "model.path=PATH": "a directory, a hub name, or an embedded model: microworld_llama, microworld_neox",
    "data=text data.path=PATH": "a file, a folder or a hub name; its calibration split is what methods look at",
    "data.calibration_size=N": "records of that split",
    "run_dir=DIR": "where the model, baseline.json and results.json are written",
    "trainer.accelerator=cpu": "where; auto: on a GPU if there is one",
}
SPLIT = "test"
ORIGINAL, PRUNED = "original", "pruned"  # variants of a metric


def main(cfg: DictConfig) -> None:
    """Load, prune, measure on the test split before and after, and write the model with its card."""
    with quiet():
        _main(cfg, Path(cfg.run_dir))


def _main(cfg: DictConfig, run_dir: Path) -> None:
    place = device(cfg)
    words = cfg.model.tokenizer_path or cfg.model.path
    setting = "model.tokenizer_path" if cfg.model.tokenizer_path else "model.path"
    tokenizer = load_tokenizer(words, trust_remote_code=cfg.model.trust_remote_code, setting=setting)
    supernet = untrained(cfg)
    precision = precision_of(cfg.model.path) if cfg.model.dtype is None else supernet.model.dtype
    baseline: Baseline = build(cfg.baseline)
    baseline.refuse(supernet)
    data = prepared_data(cfg, tokenizer, supernet)
    tests, full = list(data.test_dataloader()), supernet.largest()
    supernet.to(place).eval()
    base = {"path": cfg.model.path, "weights": fingerprint(supernet), "data": data.fingerprint}
    metrics = measured(supernet.model, tests, ORIGINAL, precision)
    begun = time.perf_counter()
    pruned = baseline(supernet, data.calibration_dataloader)
    seconds = time.perf_counter() - begun
    pruned.model.to(precision)  # type: ignore[arg-type]  # what was computed in float32 goes back to the file's
    metrics += measured(pruned.model, tests, PRUNED, precision)
    pruned.model.cpu()
    save(pruned, tokenizer, run_dir, full=full, metrics=metrics, method=method_of(cfg.baseline))
    settings: Any = OmegaConf.to_container(cfg.baseline, resolve=True)
    found = {"summary": pruned.summary, "seconds": seconds, "records": dict(pruned.records)}
    write_json(run_dir / BASELINE_FILE, {"method": settings, "model": base, **found})
    add_metrics(run_dir, metrics)
    print(f"{pruned.summary}\n\n{table(metrics)}\n")
    model = run_dir / MODEL
    print(f"written to {model}; how to load it: {model / 'README.md'}")
    command = ["nas-llm", "train", f"model.path={model}", *recovery(pruned.model), "search=none", *same_data(run_dir)]
    there = [f"training.teacher_path={cfg.model.path}", f"run_dir={run_dir / 'recovered'}"]
    print(f"let it recover: {shlex.join([*command, *there])}")


def same_data(run_dir: Path) -> list[str]:
    """The overrides of this call that say on what data, and where, a training goes on."""
    record = run_dir / ".hydra" / "overrides.yaml"
    given = [str(override) for override in OmegaConf.load(record)] if record.is_file() else []
    return [override for override in given if override.startswith(("data=", "data.", "trainer.", "seed="))]


def recovery(model: PreTrainedModel) -> list[str]:
    """Overrides by which the whole network, alone, learns from another one and stays what the baseline made it."""
    alone = ["search_space=whole", "sampler=standard", "training.teacher=frozen", "importance=none"]
    if quantized_modules(model):
        return [*alone, "peft=lora"]
    is_sparse = any(Zeros.of(weight.detach()).sparsity >= SPARSE for weight in model.parameters() if weight.dim() == 2)
    return [*alone, "training.zeros=keep"] if is_sparse else alone


def measured(
    model: PreTrainedModel, batches: Sequence[Batch], variant: str, precision: torch.dtype
) -> list[dict[str, Any]]:
    """What ``results.json`` says of a network: its sizes, as its file has them, and its loss on the test split."""
    zeros = zeros_of_model(model).overall
    packed = sum(layer.weight_bytes for layer in quantized_modules(model).values())
    weight_bytes = sum(parameter.numel() for parameter in model.parameters()) * precision.itemsize + packed
    samples = sum(len(batch["input_ids"]) for batch in batches)
    loss = mean_token_loss(model, batches)
    where = {"split": SPLIT, "samples": samples}
    rows: list[tuple[str, float, str, dict[str, Any]]] = [
        ("params", zeros.size, "parameters", {}),
        ("nonzero_share", zeros.nonzero / zeros.size, "1", {}),
        ("weight_bytes", weight_bytes, "B", {}),
        ("loss", loss, "nats/token", where),
    ]
    return [{"name": name, "value": value, "unit": unit, "variant": variant, **of} for name, value, unit, of in rows]


def save(
    pruned: Pruned,
    tokenizer: PreTrainedTokenizerBase,
    run_dir: Path,
    *,
    full: Architecture,
    metrics: Sequence[Mapping[str, Any]],
    method: str,
) -> None:
    """The model, its tokenizer and its card, whole or not at all. Raises ValueError where the disk refuses."""
    network = operators_of(pruned.model)
    params = {metric["variant"]: int(metric["value"]) for metric in metrics if metric["name"] == "params"}

    def card(folder: Path) -> None:
        write_baseline_card(
            folder,
            run_dir=run_dir,
            name=MODEL,
            method=method,
            summary=pruned.summary,
            params=(params[ORIGINAL], params[PRUNED]),
            metrics=metrics,
            architecture=pruned.architecture,
            full=full,
            operators=[] if network is None else network.to_dict()["blocks"],
        )

    save_pretrained(pruned.model, run_dir / MODEL, tokenizer=tokenizer, extra=card, setting="run_dir")


def method_of(node: DictConfig) -> str:
    """WandaBaseline -> Wanda."""
    return str(node["_target_"]).rpartition(".")[2].removesuffix("Baseline")


def table(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Each metric before and after."""
    values = {(metric["name"], metric["variant"]): metric for metric in metrics}
    lines = [f"{'':<24}  {ORIGINAL:>12}  {PRUNED:>12}"]
    for name in dict.fromkeys(metric["name"] for metric in metrics):
        before, after = values[name, ORIGINAL], values[name, PRUNED]
        head = numbers.axis(name, before["unit"])
        shown = (numbers.value(name, metric["value"]) for metric in (before, after))
        lines.append(f"{head:<24}  " + "  ".join(f"{text:>12}" for text in shown))
    return "\n".join(lines)
