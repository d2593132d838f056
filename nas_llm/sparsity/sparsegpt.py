"""SparseGPT (Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
arXiv:2301.00774, algorithm 1).

Columns of W (out, in) are gone through from left to right. Zeroing w_ij costs w_ij^2 / [H_F^-1]_jj, H_F the Hessian
2 X X^T + damping of the columns j.. that are left; the optimal update of those is - w_ij / [H_F^-1]_jj * [H_F^-1]_j,
(optimal brain surgeon, equation 3). With U the upper Cholesky factor of the whole inverse Hessian, H^-1 = U^T U, the
row [H_F^-1]_j, is U_jj U_j, for every j: one factor serves all rows and columns. The mask of a fraction is chosen for
``block_size`` columns at a time, with the weights as they are updated by then; that of a pattern, for each group when
it is reached. X: (in, tokens), once the blocks before are sparse. In float32, whatever the network's precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nas_llm.models.block_walk import by_statistic, walk
from nas_llm.models.input_statistics import Hessian, inverse_cholesky
from nas_llm.models.supernet import Supernet
from nas_llm.sparsity.amount import Amount, lowest, refuse_non_finite
from nas_llm.sparsity.counting import ZeroCounts, Zeros
from nas_llm.sparsity.targets import Targets, chosen

if TYPE_CHECKING:
    from nas_llm.sparsity import Batches


BLOCK_SIZE = 128  # columns, the paper's


@dataclass(frozen=True)
class SparseGPT:
    """Fields as in :mod:`nas_llm.sparsity`, and ``block_size`` columns whose mask is chosen at a time (the paper's 128)
    and ``damping``, which is added to the Hessian's diagonal as a fraction of its mean.

    Raises:
        ValueError: both or neither of ``sparsity`` and ``pattern``, one out of range, ``block_size`` below 1 or no
            multiple of the pattern's M, ``damping`` below 0; when called, beside what every method raises: a Hessian
            that is singular with this damping.
    """

    sparsity: float | None = None
    pattern: str | None = None
    targets: Targets = None
    block_size: int = BLOCK_SIZE
    damping: float = 0.01

    def __post_init__(self) -> None:
        amount = Amount.of(self.sparsity, self.pattern)
        if self.block_size < 1 or self.block_size % amount.group:
            group = amount.group
            by = f", by sparsity.pattern={self.pattern}, whose {group} has to divide the widths of the layers too"
            what = f"a multiple of {group}{by}" if self.pattern else "1 or more"
            size = max(group, BLOCK_SIZE // group * group)
            raise ValueError(f"sparsity.block_size={self.block_size}: allowed is {what}; as sparsity.block_size={size}")
        if self.damping < 0:
            raise ValueError(f"sparsity.damping={self.damping}: allowed is 0 or more, as sparsity.damping=0.01")

    @torch.no_grad()
    def __call__(self, supernet: Supernet, batches: Batches) -> ZeroCounts:
        """Raises as :class:`nas_llm.sparsity.Sparsity`."""
        amount = Amount.of(self.sparsity, self.pattern)
        names = [projection.name for projection in chosen(supernet, self)]
        found = {}
        for block in walk(supernet, batches):
            for hessian, sharing in by_statistic(block.projections, block.collect(Hessian, names)):
                factor = inverse_factor(hessian.matrix, self.damping, sharing[0].name, overwrite=True)
                for projection in sharing:
                    weight = projection.weight
                    pruned = prune(weight, factor, amount, self.block_size)
                    refuse_non_finite(pruned, projection.name)
                    weight.copy_(pruned)
                    found[projection.name] = Zeros.of(weight)
                    del pruned
                del hessian, factor
        return ZeroCounts({name: found[name] for name in names})


def inverse_factor(hessian: Tensor, damping: float, name: str, *, overwrite: bool = False) -> Tensor:
    """The upper Cholesky factor U (in, in) of the inverse of the damped Hessian: H^-1 = U^T U.

    Channels that are never active have the damping alone: their weights cost least and go first. With
    ``overwrite`` the factor takes the Hessian's memory.

    Raises:
        ValueError: the Hessian is singular; ``name`` is the module whose it is.
    """
    try:
        return inverse_cholesky(hessian, damping, overwrite=overwrite)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            f"sparsity.damping={damping}: the Hessian of what {name} reads has no inverse with it; set "
            f"sparsity.damping={max(10 * damping, 0.01):g}, or calibrate on more data with data.calibration_size="
        ) from error


def prune(weight: Tensor, factor: Tensor, amount: Amount, block_size: int) -> Tensor:
    """The pruned and updated weight, float32, with exactly as many zeros as ``amount`` says; a fraction is that of the
    whole matrix.

    Args:
        weight: (out, in), which stays as it is.
        factor: U (in, in) of :func:`inverse_factor`.
        amount: of zeros.
        block_size: columns.
    """
    weight = weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    rows, columns = weight.shape
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        inside, upper = weight[:, start:stop], factor[start:stop, start:stop]
        diagonal = upper.diagonal()
        errors = torch.zeros_like(inside)
        mask = torch.zeros_like(inside, dtype=torch.bool)
        if amount.fraction is not None:
            count = amount.zeros(rows * stop) - amount.zeros(rows * start)
            mask = lowest((inside / diagonal).square_().flatten(), count).view_as(inside)
        for column in range(stop - start):
            if amount.fraction is None and column % amount.group == 0:
                group = slice(column, column + amount.group)
                mask[:, group] = amount.lowest((inside[:, group] / diagonal[group]).square())
            gone = torch.where(mask[:, column], inside[:, column], 0)
            errors[:, column] = gone / diagonal[column]
            inside[:, column:] -= errors[:, column : column + 1] * upper[column, column:]
        weight[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
        inside.masked_fill_(mask, 0)  # what the last subtraction left of them is rounding
    return weight
