"""What a table would take at full size, computed from parameters, tokens and an assumed throughput.

With N the model's parameters and T tokens, in floating-point operations:

    training, every weight          6 N T for each network of a step (forward 2, backward 4)
    training, adapters alone        4 N T (no gradient of the frozen weights)
    measuring, calibrating          2 N T
    distilling operators            (2 N + 3 N C) T: C candidates a sublayer, each of half a sublayer on average
    scoring operators               2 N T for each of 64 sublayers and C candidates, on the calibration split
    harness                         2 N x 5e6 tokens a call (about what the five tasks of paper 1 ask)

    hours = operations / (tflops x 1e12 x 3600)

Sub-networks count as the whole network, so that this is an upper bound there. Memory is of weights (in their own
precision), gradients and Adam's two moments (16 bytes a weight that is trained, in float32), and of the teacher where
there is a second network; activations come on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GIB = 2**30
SUBLAYERS, HARNESS_TOKENS, CALIBRATION_TOKENS, RECORDS = 64, 5e6, 128 * 2048, 128
BYTES = {None: 4, "float32": 4, "bfloat16": 2, "float16": 2}
TRAINED = 16  # bytes of a weight that is trained: itself, its gradient, two moments
FORMULA = (
    "GPU-hours = operations / ({tflops:g}e12 x 3600): 6 N T a trained network and step (4 N T where adapters alone are "
    "trained), 2 N T measured; memory: 16 bytes a trained weight, 4 or 2 a frozen one; activations come on top"
)


@dataclass(frozen=True)
class Needs:
    """Of some commands: floating-point operations, and the largest memory of one of them in bytes."""

    operations: float = 0.0
    memory_bytes: float = 0.0

    def __add__(self, other: Needs) -> Needs:
        return Needs(self.operations + other.operations, max(self.memory_bytes, other.memory_bytes))

    def hours(self, tflops: float) -> float:
        """At so many 1e12 operations a second."""
        return self.operations / (tflops * 1e12 * 3600)

    @property
    def memory_gib(self) -> float:
        return self.memory_bytes / GIB


def needs_of(
    configurations: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, float],
    before: Sequence[Mapping[str, Any]] = (),
) -> Needs:
    """Of the commands with these composed configurations, in their order.

    Args:
        parameters: of models, by the name in ``model.path``; what an earlier command wrote counts as the model that it
            was made of.
        before: of commands whose results they use.

    Raises:
        ValueError: no command names a model that is known.
    """
    named = [name for cfg in (*before, *configurations) for name in _models(cfg)]
    known = [parameters[name] for name in named if name in parameters]
    if configurations and not known:
        raise ValueError(
            f"reproduce.parameters says nothing of {', '.join(dict.fromkeys(named)) or 'any model'}: add its parameters"
        )
    total = Needs()
    for cfg in configurations:
        own = [parameters[name] for name in _models(cfg) if name in parameters]
        total += _needs(cfg, own[0] if own and not (before and is_default(cfg)) else known[0])
    return total


def is_default(cfg: Mapping[str, Any]) -> bool:
    """Whether its model is the embedded one that is chosen where none is named."""
    return _models(cfg) == ["microworld_llama"]


def _models(cfg: Mapping[str, Any]) -> list[str]:
    """Names of models in a configuration, what a stage measures before what it was made of."""
    evaluate, bench = cfg.get("evaluate") or {}, cfg.get("bench") or {}
    names = [evaluate.get("model_path"), bench.get("path"), (cfg.get("model") or {}).get("path")]
    return [str(name) for name in names if name]


def _needs(cfg: Mapping[str, Any], n: float) -> Needs:
    stage = cfg["stage"]
    weights = BYTES.get(str(cfg["model"].get("dtype")) if cfg["model"].get("dtype") else None, 4) * n
    if stage == "train":
        return _training(cfg, n, weights) + _searching(cfg, n, weights)
    if stage == "search":
        if str(cfg["search"].get("_target_")).endswith("ProgrammeSearch"):
            return _programme(cfg, n, weights)
        return _searching(cfg, n, weights)
    if stage == "distill":
        searched = str(cfg["search"].get("_target_")).endswith("ProgrammeSearch")
        return _distilling(cfg, n, weights) + (_programme(cfg, n, weights) if searched else Needs())
    if stage == "evaluate":
        return Needs(2 * n * HARNESS_TOKENS, weights)
    if stage == "prune":
        return Needs(2 * 2 * n * CALIBRATION_TOKENS, weights)
    return Needs(0.0, weights)


def _tokens(cfg: Mapping[str, Any], records: float) -> float:
    return records * float(cfg["data"].get("sequence_length") or 512)


def _training(cfg: Mapping[str, Any], n: float, weights: float) -> Needs:
    trainer, sampler = cfg["trainer"], cfg["sampler"]
    steps = max(int(trainer.get("max_steps") or 0), 0) * int(cfg["training"]["accumulate_grad_batches"])
    networks = sum(int(sampler.get(key, 0)) for key in ("k", "largest", "smallest")) or 1
    adapters = bool(cfg.get("peft"))
    tokens = _tokens(cfg, steps * cfg["data"]["batch_size"])
    operations = (4 if adapters else 6) * n * tokens * networks
    calibrated = sum(bool(cfg.get(group)) for group in ("importance", "sparsity", "quantization"))
    operations += 2 * n * _tokens(cfg, cfg["data"]["calibration_size"]) * calibrated
    memory = weights if adapters or not steps else TRAINED * n
    return Needs(operations, memory + (weights if cfg["training"].get("teacher") == "frozen" else 0))


def _searching(cfg: Mapping[str, Any], n: float, weights: float) -> Needs:
    evaluations = int(cfg["search"].get("evaluations") or 0)
    return Needs(2 * n * _validation_tokens(cfg) * evaluations, weights)


def _validation_tokens(cfg: Mapping[str, Any]) -> float:
    limit, size = cfg["trainer"].get("limit_val_batches"), cfg["data"].get("validation_size")
    records = float(size) if isinstance(size, int) else float(RECORDS)
    if isinstance(limit, int):
        records = min(records, limit * cfg["data"]["batch_size"])
    written = (cfg["objectives"].get("generated_accuracy") or {}).get("max_new_tokens", 0)
    return _tokens(cfg, records) + records * float(written)


def _distilling(cfg: Mapping[str, Any], n: float, weights: float) -> Needs:
    distill, pool = cfg["distill"], cfg["pool"]
    candidates = (len(pool["attention"]) + len(pool["mlp"])) / 2
    steps = distill["steps"] * distill["accumulate_grad_batches"]
    operations = (2 + 3 * candidates) * n * _tokens(cfg, steps * cfg["data"]["batch_size"])
    operations += 2 * n * _tokens(cfg, cfg["data"]["calibration_size"]) * SUBLAYERS * candidates
    in_work = float(distill["memory_gib"] or 0) * GIB or TRAINED * n * candidates / 2
    return Needs(operations, max(weights, in_work))


def _programme(cfg: Mapping[str, Any], n: float, weights: float) -> Needs:
    search, select = cfg["search"], cfg["select"]
    budgets = max(len(value) if isinstance(value, list) else 1 for value in cfg["budget"].values())
    trained = search["number"] * select["steps"] * budgets
    networks = trained * (2 if select.get("rounds") != 1 else 1)  # halves of halves
    operations = 6 * n * _tokens(cfg, networks * cfg["data"]["batch_size"])
    return Needs(operations, TRAINED * n if trained else weights)
