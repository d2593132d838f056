"""Magnitude pruning: the weights with the least |W_ij| become zero (Han et al., 2015), no data needed.

The fraction is that of each layer's whole matrix, as in the baseline that Wanda and SparseGPT compare with (Sun et al.,
2023, table 1), not of each row. W: (out, in).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nas_llm.models.supernet import Supernet
from nas_llm.sparsity.amount import Amount, refuse_non_finite, zero
from nas_llm.sparsity.counting import ZeroCounts, Zeros
from nas_llm.sparsity.targets import Targets, chosen

if TYPE_CHECKING:
    from nas_llm.sparsity import Batches


@dataclass(frozen=True)
class Magnitude:
    """Fields as in :mod:`nas_llm.sparsity`.

    Raises:
        ValueError: both or neither of ``sparsity`` and ``pattern``, or one out of range.
    """

    sparsity: float | None = None
    pattern: str | None = None
    targets: Targets = None

    def __post_init__(self) -> None:
        Amount.of(self.sparsity, self.pattern)

    @torch.no_grad()
    def __call__(self, supernet: Supernet, batches: Batches = ()) -> ZeroCounts:
        """Raises as :class:`nas_llm.sparsity.Sparsity`; ``batches`` are not looked at."""
        amount = Amount.of(self.sparsity, self.pattern)
        found = {}
        for projection in chosen(supernet, self):
            scores = projection.weight.float().abs()
            refuse_non_finite(scores, projection.name)
            zero(projection, amount.lowest_of_all(scores))
            found[projection.name] = Zeros.of(projection.weight)
        return ZeroCounts(found)
