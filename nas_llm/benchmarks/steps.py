"""The steps that the sandwich benchmark compares, on a random Llama of 8 layers (hidden 512, FFN 1408, vocabulary
32,000).

- ``plain``: transformers' own forward with labels, backward, gradient clipping, AdamW: the full network, nothing of
this package; - ``standard``: the full network through this package's loss; - ``sandwich``: largest, two sub-networks,
smallest, in-place forward KL, one AdamW update (paper 1, equation 1).

Run as a program, it takes a few steps of one kind and prints the peak memory of its process in MiB: a process of its
own for each kind, because the peak of a process never goes down.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.benchmarks.processes import peak_mib
from nas_llm.distillation import ForwardKL
from nas_llm.lightning.gradients import existing, scale_and_clip
from nas_llm.lightning.sandwich import sandwich_passes
from nas_llm.models.supernet import Supernet

VOCABULARY, HEAD_DIM = 32_000, 64
KINDS = ("plain", "standard", "sandwich")
_MEMORY_STEPS = 3  # the optimizer's state exists from the second on


def uniform(hidden: int, heads: int, kv_groups: int, ffn: int, layers: int) -> Architecture:
    choices = tuple(LayerChoice(i, kv_groups, heads // kv_groups, HEAD_DIM, ffn) for i in range(layers))
    return Architecture(hidden, choices)


ARCHITECTURES = (
    uniform(512, 8, 4, 1408, 8),
    uniform(384, 6, 3, 1056, 6),
    uniform(512, 4, 4, 704, 8),
    uniform(256, 4, 2, 704, 4),
)


def llama(seed: int = 0) -> LlamaForCausalLM:
    """The network of the benchmark, with random weights."""
    sizes: dict[str, Any] = {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "head_dim": HEAD_DIM,
    }
    heads: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 2048}
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **heads))


def random_batch(batch_size: int, sequence_length: int, seed: int = 0) -> dict[str, Tensor]:
    """Random tokens, all of them counted."""
    tokens = torch.randint(VOCABULARY, (batch_size, sequence_length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}


def plain_step(model: LlamaForCausalLM, batch: dict[str, Tensor]) -> Callable[[], None]:
    """A training step as one would write it without this package."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        model(**batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def supernet_step(
    supernet: Supernet, batch: dict[str, Tensor], architectures: tuple[Architecture, ...]
) -> Callable[[], None]:
    """A step of the super-network on these architectures, the first of which teaches the others."""
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=1e-4)
    distillation = ForwardKL()

    def step() -> None:
        passes = sandwich_passes(
            supernet,
            architectures,
            batch,
            teacher=ARCHITECTURES[0],
            distillation=distillation,
            backward=lambda loss: loss.backward(),
        )
        scale_and_clip(existing(supernet.parameters()), torch.tensor(1.0 / passes.tokens), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def step_of(kind: str, batch_size: int, sequence_length: int) -> Callable[[], None]:
    """A new network and its step."""
    batch = random_batch(batch_size, sequence_length)
    if kind == "plain":
        return plain_step(llama(), batch)
    return supernet_step(Supernet(llama()), batch, ARCHITECTURES if kind == "sandwich" else ARCHITECTURES[:1])


def main(kind: str, batch_size: int, sequence_length: int, threads: int) -> None:
    torch.set_num_threads(threads)
    before = peak_mib()
    step = step_of(kind, batch_size, sequence_length)
    for _ in range(_MEMORY_STEPS):
        step()
    print(json.dumps({"peak_mib": peak_mib(), "interpreter_mib": before}))


if __name__ == "__main__":
    main(sys.argv[1], *(int(argument) for argument in sys.argv[2:]))
