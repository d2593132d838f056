"""What a training step of masked adapters takes, beside one of plain LoRA (SQFT's SparsePEFT; paper 2, section 4).

One linear layer, forward and backward. Plain LoRA multiplies tokens and weight twice (y, dL/dx) and the thin factors;
masked adapters make B A, add it to the weight and multiply thrice (y, dL/dx, dL/dW, from which A's and B's gradients
come). The FLOPs of both say what ratio arithmetic allows; the limit is on time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from nas_llm.benchmarks.figures import Figure
from nas_llm.benchmarks.settings import refuse_below_one
from nas_llm.models.timing import threads
from nas_llm.peft.adapters import NAME

TIME_LIMIT = 1.8


@dataclass(frozen=True)
class AdaptersBenchmark:
    """``repeats`` steps of each in turns after one that is not counted; ``threads`` None is one per core.

    Raises:
        ValueError: a number below 1, or a rank above the width.
    """

    repeats: int = 15
    threads: int | None = None
    width: int = 1024
    tokens: int = 512
    rank: int = 32
    sparsity: float = 0.5

    def __post_init__(self) -> None:
        refuse_below_one(self, but=["sparsity"])
        if self.rank > self.width:
            raise ValueError(f"bench.rank={self.rank}: allowed is at most bench.width={self.width}")

    def __call__(self, say: Callable[[str], None] = print) -> list[Figure]:
        with threads(self.threads):
            shape = f"{self.width} x {self.width}, {self.tokens} tokens, rank {self.rank}"
            say(f"{torch.get_num_threads()} threads, {shape}")
            return [self._figure()]

    @property
    def flops_ratio(self) -> float:
        """Multiply-accumulates of a masked step over those of a plain one."""
        w, t, r = self.width, self.tokens, self.rank
        plain = 2 * t * w * w + 6 * t * w * r
        return (3 * t * w * w + 3 * w * w * r) / plain

    def _figure(self) -> Figure:
        layers = {"plain": self._layer(masked=False), "masked": self._layer(masked=True)}
        x = torch.randn(self.tokens, self.width, generator=torch.Generator().manual_seed(0), requires_grad=True)
        seconds: dict[str, list[float]] = {name: [] for name in layers}
        for turn in range(self.repeats + 1):
            for name, layer in layers.items():
                start = time.perf_counter()
                layer(x).sum().backward()
                if turn:
                    seconds[name].append(time.perf_counter() - start)
                layer.zero_grad()
                x.grad = None
        plain, masked = (1000 * statistics.median(seconds[name]) for name in ("plain", "masked"))
        return Figure(
            "training step of SparsePEFT / of plain LoRA",
            masked / plain,
            TIME_LIMIT,
            f"{masked:.1f} / {plain:.1f} ms; FLOPs {self.flops_ratio:.2f}",
        )

    def _layer(self, *, masked: bool) -> nn.Module:
        from peft import LoraConfig
        from peft.tuners.lora.layer import Linear as LoraLinear

        from nas_llm.peft.sparse_lora import SparseLoraLinear

        generator = torch.Generator().manual_seed(1)
        base = nn.Linear(self.width, self.width, bias=False).requires_grad_(False)
        base.weight.copy_(torch.randn(base.weight.shape, generator=generator))
        base.weight[torch.rand(base.weight.shape, generator=generator) < self.sparsity] = 0
        config = LoraConfig(r=self.rank, lora_alpha=2 * self.rank)
        layer = LoraLinear(base, NAME, config, r=self.rank, lora_alpha=2 * self.rank)
        if masked:
            layer.__class__ = SparseLoraLinear
        return layer.train()
