"""A weighted sum of local losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nas_llm.operators.local_losses.cosine import Cosine
from nas_llm.operators.local_losses.l1 import L1
from nas_llm.operators.local_losses.mse import MSE
from nas_llm.operators.local_losses.square_head import SquareHead


@dataclass(frozen=True)
class Mix:
    """The weight of each; a loss of weight 0 is not computed.

    Raises:
        ValueError: a weight below 0, or none above.
    """

    square_head: float = 1.0
    mse: float = 0.0
    l1: float = 0.0
    cosine: float = 0.0

    def __post_init__(self) -> None:
        weights = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, weight in weights.items():
            if weight < 0:
                raise ValueError(f"local_loss.{name}={weight}: allowed is 0 or more")
        if not any(weights.values()):
            raise ValueError("local_loss: all weights are 0, so that nothing is learnt: set local_loss.square_head=1")

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        losses: tuple[Callable[..., Tensor], ...] = (SquareHead(), MSE(), L1(), Cosine())
        weights = (self.square_head, self.mse, self.l1, self.cosine)
        terms = [w * loss(student, teacher, mask) for loss, w in zip(losses, weights, strict=True) if w]
        return torch.stack(terms).sum()
