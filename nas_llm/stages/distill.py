"""Distils operators for every sublayer of a network, from which a search puts smaller networks together (UNAST)."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from nas_llm.config import build
from nas_llm.data.loader import Batch, TrainLoader
from nas_llm.lightning.identity import refuse_other_network
from nas_llm.lightning.preparation import sort_by_importance
from nas_llm.lightning.quiet import quiet
from nas_llm.models.loading import without_weights
from nas_llm.models.supernet import Supernet
from nas_llm.models.tokenizer import load_tokenizer
from nas_llm.operators.distilling import Distilling, Splits, distil
from nas_llm.operators.groups import Group, groups_of
from nas_llm.operators.initial import initial_modules
from nas_llm.operators.library import Library
from nas_llm.operators.needs import Needs
from nas_llm.operators.plan import plan_of, search_plan_of
from nas_llm.operators.pool import Pool
from nas_llm.run_directory import OPERATORS, refuse_outputs
from nas_llm.run_fingerprints import refuse_mismatch
from nas_llm.stages.data import data_settings, prepared_data
from nas_llm.stages.operator_budgets import asked_budgets
from nas_llm.stages.operator_search import search_operators
from nas_llm.stages.search import device, loading, searches_operators, untrained

READS = (
    "model",
    "data",
    "importance",
    "pool",
    "local_loss",
    "distill",
    "trainer.accelerator",
    "trainer.enable_progress_bar",
    "trainer.limit_val_batches",
    "search",
    "distillation",
    "budget",
    "select",
    "latency",
    "latency_table",
)
OVERRIDES = {
    "run_dir=DIR": "where the operators are kept; called again, it distils the missing ones alone",
    "model.path=PATH": "a directory, a hub name, or an embedded model: microworld_llama, microworld_neox",
    "data=text data.path=PATH": "a file, a folder or a hub name; data=instruction for Alpaca-form records",
    "pool=paper": "the candidates of every sublayer; any of the group's options",
    "distill.plan=true": "say what it would take, from config.json alone, and stop",
    "distill.steps=N": "optimizer steps of every operator",
    "distill.memory_gib=X": "of one process: as many sublayers are worked at once as fit; null: all",
    "distill.processes=N": "that divide the operators among them",
    "data.batch_size=N": "records per step",
    "search=ilp budget.latency=X": "go on to the search, with at most this part of the full latency, or so many ms",
}


def main(cfg: DictConfig) -> None:
    """Load, sort, distil the pool, score; in a directory that holds some of the operators, the missing ones alone."""
    with quiet():
        settings: Distilling = build(cfg.distill)
        if searches_operators(cfg):
            asked_budgets(cfg)  # refused before anything is distilled
        if settings.plan:
            print(planned(cfg, settings))
        else:
            _main(cfg, settings, Path(cfg.run_dir))


def planned(cfg: DictConfig, settings: Distilling) -> str:
    """What the configuration would take, of the shapes in the model's ``config.json``."""
    supernet = Supernet(without_weights(cfg.model.path, **loading(cfg)))
    pool: Pool = build(cfg.pool)
    needs = needs_of(cfg, supernet, settings)
    groups = groups_of(pool(supernet), needs, memory_gib=settings.memory_gib, processes=settings.processes)
    return "\n".join([*pool.left_out(supernet), plan_of(groups, needs, settings), *searched(cfg, groups, needs)])


def searched(cfg: DictConfig, groups: Sequence[Group], needs: Needs) -> list[str]:
    """What the search behind the distillation would take, where the configuration has one."""
    if not searches_operators(cfg):
        return []
    search, budgets = build(cfg.search), asked_budgets(cfg)
    latency = build(cfg.latency) if any("latency" in budget for budget in budgets) else None
    said = search_plan_of(
        groups,
        needs,
        build(cfg.select),
        networks=search.number,
        budgets=len(budgets),
        calibration_records=cfg.data.calibration_size,
        latency=latency,
    )
    return [said]


def needs_of(cfg: DictConfig, supernet: Supernet, settings: Distilling) -> Needs:
    accumulates = settings.accumulate_grad_batches > 1
    return Needs(supernet, cfg.data.batch_size, cfg.data.sequence_length, accumulates)


def _main(cfg: DictConfig, settings: Distilling, run_dir: Path) -> None:
    library, place = Library(run_dir / OPERATORS), device(cfg)
    if not library.is_begun:
        refuse_outputs(run_dir)
    if place == "cuda" and settings.processes > torch.cuda.device_count():
        raise ValueError(
            f"distill.processes={settings.processes}: there are {torch.cuda.device_count()} CUDA devices, one for each "
            f"process: set distill.processes={torch.cuda.device_count()} or less"
        )
    words = cfg.model.tokenizer_path or cfg.model.path
    setting = "model.tokenizer_path" if cfg.model.tokenizer_path else "model.path"
    tokenizer = load_tokenizer(words, trust_remote_code=cfg.model.trust_remote_code, setting=setting)
    supernet = untrained(cfg)
    network = refuse_other_network(run_dir, cfg.model.path, supernet)
    pool: Pool = build(cfg.pool)
    operators = pool(supernet)
    data = prepared_data(cfg, tokenizer, supernet)
    splits = Splits(FromTheFirst(data.train_dataloader()), data.calibration_dataloader(), data.val_dataloader())
    needs = needs_of(cfg, supernet, settings)
    groups_of(operators, needs, memory_gib=settings.memory_gib)  # refuses what fits nowhere, before anything is written
    importance = OmegaConf.to_container(cfg.importance, resolve=True)
    fingerprints = {**network, "data": data.fingerprint, "importance": importance}
    refuse_mismatch(run_dir, fingerprints, settings={"data": data_settings(cfg)})
    supernet.to(place)
    sort_by_importance(supernet, build(cfg.importance), data.calibration_dataloader, run_dir, resumes=library.is_begun)
    learnt = settings.of_results | {"data.batch_size": cfg.data.batch_size, "data.seed": cfg.data.seed}
    learnt["local_loss"] = OmegaConf.to_container(cfg.local_loss, resolve=True)
    library.begin(supernet, settings=learnt, pool=_plain(cfg.pool))
    if not (run_dir / "supernet").is_dir():
        supernet.save(run_dir / "supernet", tokenizer=tokenizer)
        supernet.to(place)
    for line in pool.left_out(supernet):
        print(line)
    distil(
        supernet.eval(),
        library,
        operators,
        splits,
        settings,
        loss=build(cfg.local_loss),
        initial=initial_modules,
        needs=needs,
        reload=partial(
            Supernet.load,
            run_dir / "supernet",
            dtype=supernet.model.dtype,
            attn_implementation=cfg.model.attn_implementation,
        ),
        progress=cfg.trainer.enable_progress_bar,
    )
    print(scores_table(library))
    if searches_operators(cfg):
        search_operators(cfg, run_dir, supernet, tokenizer, data)
        return
    command = shlex.join(["nas-llm", "search", f"run_dir={run_dir}", "search=ilp", "budget.latency=0.6"])
    print(f"Everything lies in {run_dir}; try next: {command}")


def scores_table(library: Library) -> str:
    """The local score of every operator, lowest and highest over the layers, best first in each sublayer."""
    found: dict[tuple[str, str], list[float]] = {}
    for place, operators in library.operators.items():
        for operator in operators:
            found.setdefault((place[1], operator.name), []).append(library.record(place, operator)["local"])
    width = max(len(name) for _, name in found)
    lines = [f"{'sublayer':<9}  {'operator':<{width}}  local score: mean     least   largest"]
    for (sublayer, name), scores in sorted(found.items(), key=lambda item: (item[0][0], sum(item[1]) / len(item[1]))):
        mean = sum(scores) / len(scores)
        lines.append(f"{sublayer:<9}  {name:<{width}}  {mean:>17.4f}  {min(scores):>8.4f}  {max(scores):>8.4f}")
    return "\n".join(lines)


@dataclass(frozen=True)
class FromTheFirst:
    """The batches of a train loader that nobody has gone through, epoch after epoch, each time from the first."""

    loader: TrainLoader

    def __iter__(self) -> Iterator[Batch]:
        loader = copy.copy(self.loader)
        while True:
            yield from loader


def _plain(node: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
