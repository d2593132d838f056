"""Importance by weight magnitude: the l2 norm of all weights that belong to a unit. No data needed.

Score of unit u of an axis: sqrt(sum of w^2 over every weight tensor that carries the axis, at u).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nas_llm.importance.folding import fold_weights
from nas_llm.importance.recording import Batches
from nas_llm.models.supernet import Supernet


@dataclass(frozen=True)
class Magnitude:
    """Weight norms of hidden channels, KV groups, heads and FFN neurons."""

    @torch.no_grad()
    def __call__(self, supernet: Supernet, batches: Batches = ()) -> dict[str, Tensor]:
        """Scores per axis in float32, on the CPU; ``batches`` are not looked at."""
        squares = fold_weights(supernet, lambda weight: weight.float().square())
        return {key: value.sqrt().cpu() for key, value in squares.items()}
