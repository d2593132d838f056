"""What the training tests share: a tiny Llama as a super-network, a resumable loader of random tokens, a trainer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from nas_llm.data.loader import Collate, EvalLoader, TrainLoader
from nas_llm.distillation import ForwardKL
from nas_llm.lightning.checkpoint import AtomicCheckpointIO, SaveCheckpoints
from nas_llm.lightning.module import SupernetModule
from nas_llm.models.supernet import Supernet
from nas_llm.samplers import SandwichSampler
from nas_llm.search_space import SearchSpace

VOCABULARY = 61


def tiny_supernet(**changes: Any) -> Supernet:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "head_dim": 8,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    torch.manual_seed(0)
    return Supernet(LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **changes})))


def tiny_module(supernet: Supernet | None = None, **changes: Any) -> SupernetModule:
    supernet = supernet or tiny_supernet()
    space = SearchSpace.joint(supernet)
    settings: dict[str, Any] = {
        "sampler": SandwichSampler(space, k=2),
        "distillation": ForwardKL(),
        "optimizer": partial(torch.optim.AdamW, lr=1e-2, eps=1e-6),
    }
    return SupernetModule(supernet, space, **{**settings, **changes})


def records(count: int = 24, length: int = 10, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Random tokens of uneven lengths, the first ones of each record without loss."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        tokens = torch.from_numpy(rng.integers(0, VOCABULARY, int(rng.integers(4, length + 1))))
        labels = tokens.clone()
        labels[: int(rng.integers(0, 3))] = -100
        found.append({"input_ids": tokens, "labels": labels})
    return found


def train_loader(batch_size: int = 4, *, rank: int = 0, world_size: int = 1, seed: int = 0) -> TrainLoader:
    return TrainLoader(records(), Collate(0), batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)


def listed(batches: list[dict[str, torch.Tensor]]) -> DataLoader:
    """A loader of these batches as they are."""
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def eval_loader(batch_size: int = 4) -> EvalLoader:
    return EvalLoader(records(10, seed=1), Collate(0), batch_size=batch_size)


def trainer(folder: Path | None = None, *, every_n_steps: int = 1, **settings: Any) -> Trainer:
    callbacks = [SaveCheckpoints(folder / "checkpoints", every_n_steps, keep=True)] if folder else []
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    defaults = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "use_distributed_sampler": False}
    callbacks = [*callbacks, *settings.pop("callbacks", [])]
    return Trainer(**{**quiet, **defaults, "callbacks": callbacks, "plugins": [AtomicCheckpointIO()], **settings})


def weights(module: SupernetModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.supernet.model.state_dict().items()}
