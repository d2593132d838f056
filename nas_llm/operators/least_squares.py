"""Linear maps in closed form: the best matrix for a whole sublayer, and the best output projection for kept units.

``Regression``: W (out, in) and b (out,) that minimise sum ||y - W x - b||^2 + d ||W||^2 over the tokens of a sublayer's
reads x and writes y; the candidate "linear N x N" of UNAST (paper 3, section 4.1), which leaves its start open.

``refitted``: of z (in,), what the teacher's output projection W reads, a candidate keeps S z, S (kept, in): a choice
of heads or neurons, or a projection of values. The W' (out, kept) that minimises sum ||W z - W' S z||^2 + d ||W'||^2 is
W H S^T (S H S^T + d)^-1, H the Hessian 2 sum z z^T (the update of optimal brain surgery for whole columns).

``d`` is a fraction of the mean of the diagonal that it is added to. Solved in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nas_llm.models.input_statistics import Hessian


class Regression:
    """Sums over tokens; those of x x^T are ``reads``'s, which others use as well and which is added to by its owner."""

    def __init__(self, reads: Hessian, out_features: int) -> None:
        hidden, device = reads.matrix.shape[0], reads.matrix.device
        self.reads = reads
        self.cross = torch.zeros(out_features, hidden, device=device)
        self.sum_x = torch.zeros(hidden, device=device, dtype=torch.float64)
        self.sum_y = torch.zeros(out_features, device=device, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """x: (tokens, in), y: (tokens, out), float32."""
        self.cross.addmm_(y.T, x)
        self.sum_x += x.sum(0)
        self.sum_y += y.sum(0)

    def solve(self, damping: float) -> tuple[Tensor, Tensor]:
        """W (out, in) and b (out,), float64."""
        tokens = self.reads.tokens
        mean_x, mean_y = self.sum_x / tokens, self.sum_y / tokens
        covariance = self.reads.matrix.double() / 2 - tokens * torch.outer(mean_x, mean_x)
        cross = self.cross.double() - tokens * torch.outer(mean_y, mean_x)
        weight = _solve(covariance, cross, damping)
        return weight, mean_y - weight @ mean_x


def refitted(weight: Tensor, hessian: Tensor, kept: Tensor, damping: float) -> Tensor:
    """W' (out, kept), float64.

    Args:
        weight: W (out, in).
        hessian: (in, in), as 2 Z Z^T.
        kept: S (kept, in); or, where units are chosen, their indices (kept,).
        damping: d.
    """
    whole = hessian.double()
    seen = whole[:, kept] if kept.ndim == 1 else whole @ kept.double().T
    inner = seen[kept] if kept.ndim == 1 else kept.double() @ seen
    return _solve(inner, weight.double() @ seen, damping)


def _solve(symmetric: Tensor, right: Tensor, damping: float) -> Tensor:
    """right (symmetric + damping)^-1; directions without any variance get nothing."""
    diagonal = symmetric.diagonal()
    damped = symmetric + torch.diag_embed(torch.full_like(diagonal, damping * float(diagonal.mean()) or 1.0))
    factor = torch.linalg.cholesky((damped + damped.T) / 2)
    return torch.cholesky_solve(right.T, factor).T
