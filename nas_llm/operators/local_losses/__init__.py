"""Losses of an operator that imitates its teacher's sublayer (UNAST, paper 3, section 3.1, table 1); they see tensors
only.

A local loss is a frozen dataclass, called with what both write before the residual addition and the tokens that count.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from nas_llm.operators.local_losses.cosine import Cosine
from nas_llm.operators.local_losses.l1 import L1
from nas_llm.operators.local_losses.mix import Mix
from nas_llm.operators.local_losses.mse import MSE
from nas_llm.operators.local_losses.square_head import SquareHead


class LocalLoss(Protocol):
    """How far an operator is from its teacher's sublayer."""

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """A float32 (float64 for float64) scalar.

        Args:
            student: (batch, sequence, hidden), any floating type.
            teacher: the same shape, detached.
            mask: (batch, sequence) bool, False at padding tokens; whatever stands there has no effect.
        """
        ...


__all__ = ["L1", "MSE", "Cosine", "LocalLoss", "Mix", "SquareHead"]
