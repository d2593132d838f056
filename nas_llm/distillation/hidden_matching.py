"""Hidden states: the student's block outputs are drawn to the teacher's at the same blocks of the super-network.

    weight * sum_i 1/L sum_l distance(h_s[l, i], h_t[l, i, :hidden])

over counted tokens i and the L blocks that are compared. Units of the residual stream are shared and sorted, so the
student's channels are the teacher's first, and no projection stands between them. The distance is the mean squared
difference over the channels (as TinyBERT, Jiao et al. 2020, equation 8) or one minus the cosine (as DistilBERT, Sanh et
al. 2019, section 2), which leaves the sizes free: the norm behind every block does not see them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nas_llm.distillation.mix import in_full_precision


@dataclass(frozen=True)
class HiddenMatching:
    """Added to the loss of the logits. ``layers``: ``all`` blocks that the student keeps, or the ``last`` of them.

    Raises:
        ValueError: a setting out of range.
    """

    weight: float = 1.0
    distance: Literal["mse", "cosine"] = "mse"
    layers: Literal["all", "last"] = "all"

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(
                f"hidden_matching.weight={self.weight}: allowed is above 0; to leave it out, hidden_matching=none"
            )
        if self.distance not in ("mse", "cosine"):
            raise ValueError(f"hidden_matching.distance={self.distance}: allowed are mse and cosine")
        if self.layers not in ("all", "last"):
            raise ValueError(f"hidden_matching.layers={self.layers}: allowed are all and last")

    def blocks(self, kept: Sequence[int]) -> tuple[int, ...]:
        """Of the blocks that a student keeps, in order, those that are compared."""
        return tuple(kept) if self.layers == "all" else tuple(kept[-1:])

    def __call__(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Sum over tokens, a scalar.

        Args:
            student: block outputs, (tokens, hidden) each.
            teacher: those of the same blocks, detached, (tokens, hidden of the teacher) each.
        """
        distances = [self._distance(s, t[:, : s.shape[-1]]) for s, t in zip(student, teacher, strict=True)]
        return self.weight * torch.stack(distances).mean()

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = in_full_precision(student), in_full_precision(teacher)
        if self.distance == "mse":
            return (student - teacher).square().mean(-1).sum()
        return (1 - F.cosine_similarity(student, teacher, dim=-1)).sum()
