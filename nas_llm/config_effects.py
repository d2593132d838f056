"""Settings that are each right by themselves, and that together leave nothing to do or cannot take effect."""

import json
from pathlib import Path

from omegaconf import DictConfig

from nas_llm.config import build

LEAST = {
    "val_check_interval": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": -1,
    "min_steps": 1,
    "min_epochs": 1,
    "max_epochs": 1,
    "num_nodes": 1,
}  # of the trainer's numbers; Lightning takes lower ones and trains nothing, or divides by them


def refuse_effects(cfg: DictConfig) -> None:
    """Refuse such settings of a checked configuration, before a model or data are loaded.

    Raises:
        ValueError: the first of them, and the override that mends it.
    """
    if cfg.stage in ("train", "search"):
        _refuse_limit(cfg, "limit_val_batches", "measure the networks on")
        _refuse_nothing_to_compare(cfg)
    if cfg.stage == "evaluate":
        _refuse_evaluation(cfg)
    if cfg.stage == "train":
        _refuse_programme(cfg)
        _refuse_limit(cfg, "limit_train_batches", "train on")
        _refuse_amounts(cfg)
        _refuse_intervals(cfg)
        _refuse_rates(cfg)
        _refuse_teaching(cfg)
        _refuse_sparsity(cfg)
        _refuse_quantization(cfg)


def _refuse_nothing_to_compare(cfg: DictConfig) -> None:
    if cfg.search and not cfg.objectives and not str(cfg.search.get("_target_")).endswith(".ProgrammeSearch"):
        raise ValueError("objectives=[none] leaves a search nothing to compare: name some, as objectives=[params,loss]")


def _refuse_evaluation(cfg: DictConfig) -> None:
    """A saved model is one network, with a name; and something is measured."""
    chosen = cfg.evaluate
    if chosen.model_path is None and chosen.name is not None:
        raise ValueError(
            f"evaluate.name={chosen.name} cannot take effect without evaluate.model_path: sub-networks are named by "
            "their ids; leave it out"
        )
    for key in ("architecture", "max_params", "max_latency_ms"):
        if chosen.model_path is not None and cfg[key] is not None:
            raise ValueError(
                f"{key}={cfg[key]} cannot take effect with evaluate.model_path, which names one network: leave one out"
            )
    if chosen.replace and not cfg.harness and chosen.model_path is None:
        raise ValueError("evaluate.replace=true cannot take effect without tasks: add harness=tasks, or leave it out")
    if not any(cfg.get(key) for key in ("objectives", "harness", "text_perplexity")):
        raise ValueError(
            "there is nothing to measure: choose objectives=[loss], or tasks, harness=tasks harness.tasks=[piqa]"
        )


def _refuse_programme(cfg: DictConfig) -> None:
    if str(cfg.search.get("_target_")).endswith(".ProgrammeSearch"):
        raise ValueError(
            "search=ilp searches over the operators of nas-llm distill, not over a super-network that is trained: run "
            "nas-llm distill, or choose search=nsga2 or search=none"
        )


def _refuse_amounts(cfg: DictConfig) -> None:
    """Numbers that Lightning would take."""
    trainer = cfg.trainer
    for key, least in LEAST.items():
        value = trainer.get(key)
        fraction = isinstance(value, float) and 0 < value <= 1
        if isinstance(value, int | float) and value < least and not fraction and (key, value) != ("max_epochs", -1):
            raise ValueError(f"trainer.{key}={value}: allowed is {least} or more, or trainer.{key}=null")
    # a sparse or quantised network, or one with adapters, may be searched as it is
    made = cfg.sparsity or cfg.quantization or cfg.model.get("adapter_path") or _is_quantised(cfg.model.path)
    untrained = trainer.max_steps == 0 and not made
    if trainer.max_steps is not None and (untrained or trainer.max_steps < -1):
        raise ValueError(
            f"trainer.max_steps={trainer.max_steps}: allowed is 1 or more optimizer steps, "
            "or -1 to stop by trainer.max_epochs or trainer.max_time"
        )
    if trainer.overfit_batches:
        raise ValueError(
            f"trainer.overfit_batches={trainer.overfit_batches} cannot take effect: the data keep their own order; to "
            "learn a few records by heart, set data.max_records"
        )
    for key in ("gradient_clip_val", "accumulate_grad_batches"):
        if trainer.get(key) is not None:
            raise ValueError(
                f"trainer.{key}={trainer[key]} cannot take effect: an optimizer step is this package's own; "
                f"set training.{key}={trainer[key]} instead"
            )


def _is_quantised(path: str) -> bool:
    """Whether the configuration of a directory says so, as far as one can be read there."""
    try:
        return "quantization_config" in json.loads((Path(path) / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def _refuse_limit(cfg: DictConfig, key: str, what: str) -> None:
    limit = cfg.trainer[key]
    if limit == 0:
        raise ValueError(f"trainer.{key}=0 leaves nothing to {what}: set 1 or more, or null for all")
    if limit is not None and (limit < 0 or (isinstance(limit, float) and limit > 1)):
        raise ValueError(
            f"trainer.{key}={limit}: allowed is 1 or more batches, a fraction of them up to 1.0, or null for all"
        )


def _refuse_intervals(cfg: DictConfig) -> None:
    interval = cfg.trainer.val_check_interval
    if isinstance(interval, float) and cfg.trainer.check_val_every_n_epoch is None:
        raise ValueError(
            f"trainer.val_check_interval={interval} is a fraction of an epoch, and batches are counted on over epochs: "
            "set a whole number of batches, or trainer.check_val_every_n_epoch=1"
        )


def _refuse_rates(cfg: DictConfig) -> None:
    """Make the optimizer and the scheduler once, for a parameter that nobody trains."""
    import torch

    try:
        optimizer = build(cfg.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    except ValueError as error:
        lr = f"optimizer.lr={cfg.optimizer.get('lr')}" if "learning rate" in str(error) else "optimizer"
        allowed = "; set optimizer.lr to 0 or more" if "learning rate" in str(error) else ""
        raise ValueError(f"{lr}: {error}{allowed}") from error
    scheduler = build(cfg.scheduler)
    if scheduler is not None:
        scheduler(optimizer)


def _refuse_teaching(cfg: DictConfig) -> None:
    reads_logits, frozen = build(cfg.distillation).uses_teacher, cfg.training.teacher == "frozen"
    matches = bool(cfg.hidden_matching)
    if str(cfg.sampler.get("_target_", "")).endswith(".StandardSampler") and not frozen and (reads_logits or matches):
        group = "distillation" if reads_logits else "hidden_matching"
        raise ValueError(
            f"{group}={cfg[group]['_target_'].rpartition('.')[2]} cannot take effect with sampler=standard, "
            f"which trains the teacher alone: add {group}=none, or choose sampler=sandwich, or training.teacher=frozen"
        )
    if frozen and not reads_logits and not matches:
        raise ValueError(
            "training.teacher=frozen cannot take effect where nothing is learnt from a teacher: "
            "choose distillation=forward_kl or hidden_matching=mse, or training.teacher=in_place"
        )
    external = cfg.training.teacher_path
    if external is not None and not frozen:
        raise ValueError(
            f"training.teacher_path={external} cannot take effect with training.teacher={cfg.training.teacher}: add "
            "training.teacher=frozen, or leave it out"
        )
    if external is not None and matches:
        raise ValueError(
            f"hidden_matching={cfg.hidden_matching['_target_'].rpartition('.')[2]} cannot take effect with "
            "training.teacher_path: hidden states are compared block by block and channel by channel, and another "
            "model's have another order: set hidden_matching=none"
        )
    if cfg.training.teacher_logits == "recomputed" and not reads_logits:
        raise ValueError(
            "training.teacher_logits=recomputed cannot take effect where no logits of a teacher are read: "
            "choose distillation=forward_kl, or training.teacher_logits=recorded"
        )


def _refuse_sparsity(cfg: DictConfig) -> None:
    zeros = cfg.training.zeros
    if zeros is not None and (cfg.trainer.max_steps == 0 or _trains_adapters_alone(cfg)):
        raise ValueError(f"training.zeros={zeros} cannot take effect where no weights are trained: leave it out")
    if not cfg.sparsity or zeros == "keep" or cfg.trainer.max_steps == 0 or _trains_adapters_alone(cfg):
        return
    raise ValueError(
        f"sparsity={cfg.sparsity['_target_'].rpartition('.')[2]} cannot take effect where all weights are trained, "
        "which fills the zeros again: add training.zeros=keep to train the others, trainer.max_steps=0 scheduler=none "
        "to search the sparse network as it is, or sparsity=none"
    )


def _refuse_quantization(cfg: DictConfig) -> None:
    if not cfg.quantization or cfg.trainer.max_steps == 0 or _trains_adapters_alone(cfg):
        return
    raise ValueError(
        f"quantization={cfg.quantization['_target_'].rpartition('.')[2]} cannot take effect where all weights are "
        "trained, which integers are not: add trainer.max_steps=0 scheduler=none to search the quantised network as it "
        "is, or quantization=none"
    )


def _trains_adapters_alone(cfg: DictConfig) -> bool:
    """Whether the weights that become zeros or integers are frozen: adapters beside them are what is trained."""
    return bool(cfg.get("peft"))
