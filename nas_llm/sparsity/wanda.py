"""Wanda: pruning by weights and activations (Sun et al., "A Simple and Effective Pruning Approach for Large Language
Models", arXiv:2306.11695, equation 1 and algorithm 1).

A weight's score is S_ij = |W_ij| * ||X_j||_2; in every output row i the lowest go. W: (out, in); X: (in, tokens), what
the projection reads on the calibration data once the blocks before it are sparse. Weights that stay are not changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nas_llm.models.block_walk import walk
from nas_llm.models.input_statistics import ChannelNorms
from nas_llm.models.supernet import Supernet
from nas_llm.sparsity.amount import Amount, refuse_non_finite
from nas_llm.sparsity.counting import ZeroCounts, Zeros
from nas_llm.sparsity.targets import Targets, chosen

if TYPE_CHECKING:
    from nas_llm.sparsity import Batches

_AT_ONCE = 2**18  # weights whose scores are held


@dataclass(frozen=True)
class Wanda:
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
    def __call__(self, supernet: Supernet, batches: Batches) -> ZeroCounts:
        """Raises as :class:`nas_llm.sparsity.Sparsity`."""
        amount = Amount.of(self.sparsity, self.pattern)
        names = {projection.name for projection in chosen(supernet, self)}
        found = {}
        for block in walk(supernet, batches):
            norms = block.collect(ChannelNorms, names)
            for projection in block.projections:
                if projection.name not in names:
                    continue
                weight, channels = projection.weight, norms[projection.name].norms
                for rows in weight.split(max(1, _AT_ONCE // weight.shape[1])):  # each row has its own ranking
                    scores = rows.float().abs().mul_(channels)
                    refuse_non_finite(scores, projection.name)
                    rows.masked_fill_(amount.lowest(scores), 0)
                found[projection.name] = Zeros.of(projection.weight)
        return ZeroCounts(found)
