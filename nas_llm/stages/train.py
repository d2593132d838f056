"""Trains a super-network, searches it for its Pareto front and exports three sub-networks: the main job."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from torch import nn
from transformers import PreTrainedTokenizerBase

from nas_llm.atomic_files import write_json
from nas_llm.config import build, checkpoint_path
from nas_llm.lightning.checkpoint import AtomicCheckpointIO
from nas_llm.lightning.external_teacher import external_teacher
from nas_llm.lightning.identity import refuse_other_network
from nas_llm.lightning.module import SupernetModule
from nas_llm.lightning.pareto_search import ParetoSearch, to_export
from nas_llm.lightning.preparation import quantize, sort_by_importance, sparsify
from nas_llm.lightning.progress import TrainingProgress
from nas_llm.lightning.quiet import quiet
from nas_llm.lightning.sampling import prepared_sampler, recorded_importance, scoring_of
from nas_llm.lightning.supernet_search import SPLIT, SupernetSearch, validation_batches
from nas_llm.models.block_walk import dense_projections
from nas_llm.models.quantized_linear import quantized_modules
from nas_llm.models.supernet import Supernet
from nas_llm.models.tokenizer import load_tokenizer
from nas_llm.objectives import measure
from nas_llm.peft.adapters import ACCIDENTAL
from nas_llm.peft.given import OPTIONS
from nas_llm.peft.lora import Lora
from nas_llm.quantization.targets import layers_to_quantize
from nas_llm.ranks import is_main_process
from nas_llm.reporting import front_table, write_report
from nas_llm.run_fingerprints import recorded_fingerprints, refuse_mismatch
from nas_llm.samplers import Sampler
from nas_llm.samplers.standard import StandardSampler
from nas_llm.search_space import SearchSpace
from nas_llm.sparsity.counting import SPARSE, Zeros, pattern_of
from nas_llm.sparsity.targets import chosen
from nas_llm.stages.data import data_settings, prepared_data
from nas_llm.stages.export import export_subnetwork
from nas_llm.stages.finished_run import SPACE
from nas_llm.stages.search import (
    add_adapters,
    as_prepared,
    given_adapter,
    loading,
    objective_settings,
    search_maker,
    start_adapters,
    untrained,
)
from nas_llm.stages.trainer import built_logger, built_trainer, one_line_refusals

READS = (
    "model",
    "data",
    "search_space",
    "importance",
    "sparsity",
    "quantization",
    "peft",
    "sampler",
    "distillation",
    "hidden_matching",
    "optimizer",
    "scheduler",
    "training",
    "trainer",
    "checkpoint",
    "logger",
    "objectives",
    "search",
    "ckpt_path",
)
OVERRIDES = {
    "run_dir=DIR": "where everything of this run is written; later stages name the same one",
    "model.path=PATH": "a directory, a hub name, or an embedded model: microworld_llama, microworld_neox",
    "data=text data.path=PATH": "a file, a folder or a hub name; data=instruction for Alpaca-form records",
    "trainer.max_steps=N": "optimizer steps of the super-network's training",
    "data.batch_size=N": "records per step, over all processes",
    "optimizer.lr=X": "learning rate",
    "sampler.k=N": "sub-networks sampled per step between the largest and the smallest",
    "objectives=[params,loss]": "what the search trades off; any of the group's options",
    "search.evaluations=N": "architectures the search may measure",
    "ckpt_path=last": "resume the run in run_dir from its newest checkpoint",
}
IGNORES = ("trainer.enable_checkpointing", "trainer.limit_test_batches")
PREPARES = ("importance", "sparsity", "quantization", "peft")
VALIDATIONS = (4, 5, 3, 2, 1)  # of a run, where no interval is set: the first that the number of batches divides by


def main(cfg: DictConfig) -> None:
    """Load, sort, sparsify, quantise, train, search, export, report; with `ckpt_path` from where the run was left."""
    with quiet():
        _main(cfg, Path(cfg.run_dir))


def _main(cfg: DictConfig, run_dir: Path) -> None:
    trainer = make_trainer(cfg, run_dir)
    words = cfg.model.tokenizer_path or cfg.model.path
    tokenizer = load_tokenizer(
        words,
        trust_remote_code=cfg.model.trust_remote_code,
        setting="model.tokenizer_path" if cfg.model.tokenizer_path else "model.path",
    )
    refuse_other_preparation(cfg, run_dir)
    supernet = untrained(cfg, merges=not cfg.peft)
    network = refuse_other_network(run_dir, cfg.model.path, supernet)
    refuse_early(cfg, supernet)
    teacher = make_teacher(cfg, supernet, tokenizer)
    data = prepared_data(cfg, tokenizer, supernet)
    data.train_dataloader()  # refuses what leaves no batch
    with adapted(cfg, supernet):
        make_search(cfg, supernet, build(cfg.search_space, supernet=supernet), data, tokenizer, run_dir)
    space = sorted_space(cfg, supernet, data, run_dir, trainer)
    refuse_mismatch(run_dir, identity(cfg, network, space, data), settings={"data": data_settings(cfg)})
    sparsify(supernet, build(cfg.sparsity), data.calibration_dataloader, run_dir, resumes=cfg.ckpt_path is not None)
    quantize(supernet, build(cfg.quantization), data.calibration_dataloader, run_dir, resumes=cfg.ckpt_path is not None)
    peft = add_adapters(cfg, supernet)  # last: they stand beside the weights as they will stay
    search = make_search(cfg, supernet, space, data, tokenizer, run_dir)
    if search is not None:
        measure(search.objectives, supernet, space.smallest())  # refuses now what it would refuse after training
    pareto = ParetoSearch(run_dir, tokenizer, search, peft=peft)
    trainer.callbacks.append(pareto)  # type: ignore[attr-defined]
    module = make_module(cfg, supernet, space, make_sampler(cfg, supernet, space, data, run_dir), teacher)
    with one_line_refusals(cfg):
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint_path(cfg))
    if trainer.is_global_zero:
        conclude(pareto, supernet, tokenizer, run_dir, alone=isinstance(module.sampler, StandardSampler))


def refuse_early(cfg: DictConfig, supernet: Supernet) -> None:
    """Build what only the model can judge before anything is written: a refusal leaves no run behind."""
    with adapted(cfg, supernet):
        space = build(cfg.search_space, supernet=supernet)
        build(cfg.sampler, supernet=supernet, space=space)
    token = torch.zeros(1, supernet.config.vocab_size)
    build(cfg.distillation)(token, token, torch.zeros(1, dtype=torch.long))  # top_k: k of the vocabulary at most
    for node in (cfg.importance, cfg.distillation, cfg.hidden_matching):
        build(node)
    sparsity = build(cfg.sparsity)
    if sparsity is not None:
        chosen(supernet, sparsity)
    quantization = build(cfg.quantization)
    layers: list[nn.Module] = []
    if quantization is not None:
        layers = [*layers_to_quantize(supernet, quantization.targets, quantization.group_size).values()]
    refuse_base(cfg, supernet, layers)
    supernet.refuse_cut(space.smallest().without_ranks, layers)
    if quantized_modules(supernet.model) and cfg.trainer.max_steps != 0 and not cfg.get("peft"):
        raise ValueError(
            f"model.path={cfg.model.path} is quantised, so that its weights cannot be trained: add trainer.max_steps=0 "
            "scheduler=none to search it as it is, or peft=lora to train adapters beside them, or set model.path to "
            "the network before it was quantised"
        )
    refuse_sparse(cfg, supernet)


def refuse_base(cfg: DictConfig, supernet: Supernet, to_quantize: Collection[nn.Module]) -> None:
    """Refuse adapters, or a precision, that do not go with the network, before anything is computed for them.

    Raises:
        ValueError: weights that are to be quantised, or none; no zeros that masked adapters would keep; float16, in
            which the optimizer's steps are not finite.
    """
    if supernet.model.dtype == torch.float16 and cfg.trainer.max_steps != 0:
        raise ValueError(
            f"model.dtype={cfg.model.dtype}: in float16 an optimizer's steps are not finite; allowed for training are "
            "null (float32), which trainer.precision=bf16-mixed goes with, and bfloat16: set model.dtype=bfloat16"
        )
    peft: Lora | None = build(cfg.peft)
    if peft is None:
        return
    peft.refuse_base(supernet, to_quantize)
    kept = [target.module.weight for target in peft.targets(supernet)] if OPTIONS[type(peft)] == "sparse_peft" else []
    if kept and not cfg.sparsity and all(Zeros.of(weight).sparsity <= ACCIDENTAL for weight in kept):  # type: ignore[arg-type]
        raise ValueError(
            f"peft=sparse_peft cannot take effect: none of the matrices of model.path={cfg.model.path} is sparse, so "
            "that there are no zeros to keep; add sparsity=wanda sparsity.sparsity=0.5, or set peft=lora"
        )


def refuse_sparse(cfg: DictConfig, supernet: Supernet) -> None:
    """Refuse to lose the zeros of a sparse network, or their pattern, without being asked to.

    Raises:
        ValueError: units would be sorted whose neighbours make up a pattern; all weights are trained and
            ``training.zeros`` says nothing, but of a network of operators, or it says something of a dense one.
    """
    if cfg.sparsity:
        return
    weights, model = [p.weight for p in dense_projections(supernet)], f"model.path={cfg.model.path}"
    counts = [Zeros.of(weight) for weight in weights]
    sparse, zeros = [found for found in counts if found.sparsity >= SPARSE], cfg.training.zeros
    sorts = cfg.importance and supernet.operators is None
    pattern = pattern_of(weights) if sparse and sorts else None
    if pattern is not None:
        raise ValueError(
            f"{model} has the pattern {pattern} in its weights, which sorting their channels would take apart: add "
            "importance=none"
        )
    if cfg.get("peft") or cfg.trainer.max_steps == 0:
        return
    if sparse and zeros is None and supernet.operators is None:  # sparse operators were chosen: they stay so
        share = sum(sparse, Zeros(0, 0)).sparsity
        raise ValueError(
            f"{model} is sparse, {share:.1%} of the weights of {len(sparse)} linear modules are zero, which training "
            "would fill: add training.zeros=keep to train the others, training.zeros=fill to train all, or "
            "peft=sparse_peft for adapters that keep them"
        )
    if not sparse and zeros is not None:
        raise ValueError(
            f"training.zeros={zeros} cannot take effect: {model} is dense, no linear module of its blocks has "
            f"{SPARSE:.0%} zeros; leave it out"
        )


@contextmanager
def adapted(cfg: DictConfig, supernet: Supernet) -> Iterator[None]:
    """The super-network with the adapters of the configuration inside the block; its function is the same."""
    peft = build(cfg.peft)
    if peft is None:
        yield
        return
    from nas_llm.peft.adapters import remove

    peft.add(supernet)
    try:
        start_adapters(cfg, supernet, peft)
        yield
    finally:
        remove(supernet)


def make_trainer(cfg: DictConfig, run_dir: Path) -> Trainer:
    """Lightning's trainer with this package's checkpoints and progress bar."""
    callbacks = [build(cfg.checkpoint, folder=run_dir / "checkpoints")]
    callbacks += [TrainingProgress()] if cfg.trainer.enable_progress_bar else []
    return built_trainer(
        cfg,
        logger=built_logger(cfg),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        val_check_interval=validation_interval(cfg),
    )


def validation_interval(cfg: DictConfig) -> int | float | str | None:
    """Batches between validations: as set, or so many that the last validation is at the end of a run of any length."""
    trainer = cfg.trainer
    if trainer.val_check_interval is not None or trainer.check_val_every_n_epoch is not None or trainer.max_steps < 1:
        return trainer.val_check_interval
    batches = int(trainer.max_steps * cfg.training.accumulate_grad_batches)
    return batches // next(times for times in VALIDATIONS if batches % times == 0)


def sorted_space(cfg: DictConfig, supernet: Supernet, data: Any, run_dir: Path, trainer: Trainer) -> SearchSpace:
    """The search space of the super-network, which is sorted first: the order of its layers belongs to the space."""
    supernet.to(trainer.strategy.root_device)
    sort_by_importance(
        supernet,
        build(cfg.importance),
        data.calibration_dataloader,
        run_dir,
        resumes=cfg.ckpt_path is not None,
    )
    with adapted(cfg, supernet):
        space: SearchSpace = build(cfg.search_space, supernet=supernet)
    if is_main_process():
        write_json(run_dir / SPACE, space.to_dict())
    return space


def identity(cfg: DictConfig, network: Mapping[str, Any], space: SearchSpace, data: Any) -> dict[str, Any]:
    """What a resumed run must share with the one it continues; `network` is what it was before it was sorted."""
    return {
        **network,
        "search_space": space.to_dict(),
        "data": data.fingerprint,
        **preparation(cfg),
    }


def preparation(cfg: DictConfig) -> dict[str, Any]:
    """What is done to the network before it is trained, and with which adapters training begins."""
    given = given_adapter(cfg) if cfg.peft else None
    groups = {key: OmegaConf.to_container(cfg[key], resolve=True) for key in PREPARES}
    return {**groups, "model.adapter_path content": None if given is None else given.fingerprint}


def refuse_other_preparation(cfg: DictConfig, run_dir: Path) -> None:
    """Refuse it before what follows from it, as the space of the ranks, differs too.

    Raises:
        ValueError: the run that is resumed was started with another one.
    """
    recorded = recorded_fingerprints(run_dir)
    refuse_mismatch(run_dir, {key: value for key, value in preparation(cfg).items() if key in recorded})


def make_sampler(cfg: DictConfig, supernet: Supernet, space: SearchSpace, data: Any, run_dir: Path) -> Sampler:
    """The sampler, with its grid where it draws from one; resuming keeps the grid of the run."""
    sampler: Sampler = build(cfg.sampler, supernet=supernet, space=space)
    if "candidates" in cfg.sampler:
        settings = OmegaConf.to_container(cfg.sampler.candidates, resolve=True)
        refuse_mismatch(run_dir, {"sampler.candidates": settings})
    scoring = scoring_of(
        supernet, space, lambda: list(data.calibration_dataloader()), lambda: recorded_importance(run_dir)
    )
    return prepared_sampler(sampler, scoring, run_dir, resumes=cfg.ckpt_path is not None)


def make_teacher(cfg: DictConfig, supernet: Supernet, tokenizer: PreTrainedTokenizerBase) -> Supernet | None:
    """The network of `training.teacher_path`, loaded as that of `model.path` is; None where there is none."""
    if cfg.training.teacher_path is None:
        return None
    return external_teacher(cfg.training.teacher_path, supernet, tokenizer, **loading(cfg))


def make_module(
    cfg: DictConfig, supernet: Supernet, space: SearchSpace, sampler: Sampler, teacher: Supernet | None
) -> SupernetModule:
    return build(
        cfg.training,
        supernet=supernet,
        space=space,
        sampler=sampler,
        distillation=build(cfg.distillation),
        optimizer=build(cfg.optimizer),
        scheduler=build(cfg.scheduler),
        hidden_matching=build(cfg.hidden_matching),
        teacher_network=teacher,
    )


def make_search(
    cfg: DictConfig,
    supernet: Supernet,
    space: SearchSpace,
    data: Any,
    tokenizer: PreTrainedTokenizerBase,
    run_dir: Path,
) -> SupernetSearch | None:
    """The search that follows training; None for `search=none`."""
    batches = validation_batches(data, cfg.trainer.limit_val_batches)
    runtime = {"supernet": supernet, "space": space, "batches": batches, "tokenizer": tokenizer}
    runtime |= {"data": data, "split": SPLIT}
    objectives = [build(node, **runtime) for node in cfg.objectives.values()]
    maker = search_maker(cfg, supernet, space, objectives, run_dir)
    if maker is None:
        return None
    settings = objective_settings(cfg)
    progress = cfg.trainer.enable_progress_bar
    return SupernetSearch(run_dir, maker, objectives, batches, lambda: as_prepared(cfg, run_dir), settings, progress)


def conclude(
    pareto: ParetoSearch, supernet: Supernet, tokenizer: PreTrainedTokenizerBase, run_dir: Path, *, alone: bool = False
) -> None:
    """Export, report, and say where everything lies and what to try next; ``alone``: the whole network was trained, and
    no sub-network of it."""
    if pareto.outcome is None:
        after = ("export", run_dir, "architecture=largest") if alone else ("search", run_dir, "search=nsga2")
        print(f"\nEverything lies in {run_dir}; try next: {_command(*after)}")
        return
    supernet.to("cpu")
    exported = [
        export_subnetwork(supernet, evaluation.architecture, tokenizer, run_dir=run_dir, setting="run_dir")
        for evaluation in to_export(pareto.outcome.front)
    ]
    page = write_report(run_dir)
    print(f"\n{front_table(run_dir)}\n")
    named = [str(path) for path in exported] or ["nothing: the full network is alone on the front"]
    print("exported:", *named, sep="\n  ")
    print(f"report: {page}")
    print(f"Everything lies in {run_dir}; try next: {_command('evaluate', run_dir)}")


def _command(stage: str, run_dir: Path, *overrides: str) -> str:
    return shlex.join(["nas-llm", stage, f"run_dir={run_dir}", *overrides])
