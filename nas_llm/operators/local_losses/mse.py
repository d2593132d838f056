"""The mean squared error over the counted tokens and the hidden dimension (L2 in UNAST, paper 3, table 1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nas_llm.operators.local_losses.tokens import counted


@dataclass(frozen=True)
class MSE:
    """Tensors as :class:`~nas_llm.operators.local_losses.LocalLoss` says."""

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        s, t = counted(student, teacher, mask)
        return (s - t).square().mean()
