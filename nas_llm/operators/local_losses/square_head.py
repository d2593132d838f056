"""SquareHead: the squared error over the teacher's own square (Kurtic et al., 2023; UNAST, paper 3, section 3.1).

loss = sum ||s - t||^2 / sum ||t||^2 over the counted tokens: MSE(s, t) / MSE(t, 0), so that 0 is the teacher and 1 a
sublayer that writes nothing, whatever the scale of the layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nas_llm.operators.local_losses.tokens import counted


@dataclass(frozen=True)
class SquareHead:
    """Tensors as :class:`~nas_llm.operators.local_losses.LocalLoss` says."""

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        s, t = counted(student, teacher, mask)
        square = t.square().sum()
        return (s - t).square().sum() / square.clamp_min(torch.finfo(square.dtype).tiny)
