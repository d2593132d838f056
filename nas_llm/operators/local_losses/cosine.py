"""1 - cos(s, t) of every counted token's hidden vector, on average: the direction alone. A vector of zeros has the
cosine 0."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cosine_similarity

from nas_llm.operators.local_losses.tokens import counted


@dataclass(frozen=True)
class Cosine:
    """Tensors as :class:`~nas_llm.operators.local_losses.LocalLoss` says."""

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        s, t = counted(student, teacher, mask)
        return 1 - cosine_similarity(s, t, dim=-1).mean()
