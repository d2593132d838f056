"""Random importance: the control of every width score. No data needed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nas_llm.importance.recording import Batches
from nas_llm.models.order import axis_shapes
from nas_llm.models.supernet import Supernet


@dataclass(frozen=True)
class Random:
    """Uniform scores of hidden channels, KV groups, heads and FFN neurons, a function of the seed.

    Layers keep their order: that is what :class:`nas_llm.importance.block.Block` scores.

    Raises:
        ValueError: a negative seed.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"importance.seed={self.seed}: allowed is 0 or more")

    def __call__(self, supernet: Supernet, batches: Batches = ()) -> dict[str, Tensor]:
        """Scores per axis in float32, on the CPU; ``batches`` are not looked at."""
        generator = torch.Generator().manual_seed(self.seed)
        shapes = axis_shapes(supernet.largest())
        return {key: torch.rand(shape, generator=generator) for key, shape in shapes.items() if key != "layers"}
