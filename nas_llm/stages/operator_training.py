"""The short training of what a programme gave: its batches, and under which names its losses and weights are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from nas_llm.operator_network import OperatorNetwork, Teacher
from nas_llm.operators.library import Library
from nas_llm.operators.selection import SuccessiveHalving

SELECTION = "selection"


def selection_folder(cfg: DictConfig, run_dir: Path, measured_on: str, teacher: str) -> Path:
    """Where losses and weights of short training are kept: one folder for everything that they follow from beside the
    network, so that other steps, losses or data never meet what was measured before."""
    follows = {
        "select": OmegaConf.to_container(cfg.select, resolve=True),
        "distillation": OmegaConf.to_container(cfg.distillation, resolve=True),
        "data": [measured_on, cfg.data.batch_size, cfg.data.seed, cfg.trainer.limit_val_batches],
        "teacher": teacher,
    }
    key = hashlib.sha256(json.dumps(follows, sort_keys=True).encode()).hexdigest()[:12]
    return run_dir / SELECTION / key


def keys_of(library: Library) -> Callable[[OperatorNetwork], str]:
    """What tells networks apart by their operators and by the weights of these."""
    made = cache(library.made)

    def key(network: OperatorNetwork) -> str:
        chosen = [(place, operator) for place, operator in network.operators.items() if operator != Teacher()]
        follows = [[*place, operator.name, made(place, operator)] for place, operator in chosen]
        return hashlib.sha256(json.dumps([network.id, follows]).encode()).hexdigest()[:12]

    return key


def training_batches(data: Any, halving: SuccessiveHalving, number: int) -> Iterator[Mapping[str, Tensor]]:
    """Those of a round: as many as it has steps, behind those of the rounds before it."""
    loader = data.train_dataloader()
    loader.load_state_dict(loader.state_dict() | {"step": number * halving.steps})
    yield from islice(_endless(loader), halving.steps)


def _endless(loader: Any) -> Iterator[Mapping[str, Tensor]]:
    while True:
        yield from loader
