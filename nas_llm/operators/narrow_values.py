"""Values of attention with fewer channels of a head: the best combinations of the teacher's, not a choice of them.

With z_gh (D,) the output of a head and W_gh (hidden, D) its part of the output
projection, attention is the same for values R v and projections W R^-1, for any invertible R of a group, so that
no channel is one by itself. The best
d-dimensional R minimises sum_h E || W_gh (1 - L R) z_gh ||^2 (in one head; of several the sums of covariances and
squares are taken): with C = sum_h E z z^T and B = sum_h W^T W, the first d eigenvectors V of C^1/2 B C^1/2 give
R = V^T C^-1/2 (d, D) and L = C^1/2 V (D, d).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas_llm.operator_network import Heads
from nas_llm.operators.attention_parts import rows_of


def value_projections(weight: Tensor, hessian: Tensor, operator: Heads, full: Heads) -> Tensor:
    """R of every kept group, (groups kept, d, D), float64, its rows of length one.

    Args:
        weight: of the output projection, (hidden, G * H * D).
        hessian: of what it reads, 2 sum z z^T.
    """
    shape = (full.kv_groups, full.heads_per_group, full.head_dim)
    kept = (slice(operator.kv_groups), slice(operator.heads_per_group))
    blocks = hessian.double().view(*shape, *shape)[*kept, :, *kept]
    covariance = torch.einsum("ghdghe->gde", blocks)
    parts = weight.double().unflatten(1, shape)[:, *kept]
    squares = torch.einsum("oghd,oghe->gde", parts, parts)
    values, vectors = torch.linalg.eigh(covariance)
    least = 1e-6 * values.amax(-1, keepdim=True).clamp(min=1e-12)
    root = values.clamp(min=least).sqrt()
    half = vectors * root.unsqueeze(-2) @ vectors.mT
    inverse = vectors / root.unsqueeze(-2) @ vectors.mT
    _, best = torch.linalg.eigh(half @ squares @ half)
    rows = best[..., -operator.head_dim :].flip(-1).mT @ inverse
    return rows / rows.norm(dim=-1, keepdim=True)


def project_values(narrow: nn.Module, attention: nn.Module, operator: Heads, full: Heads, rows: Tensor) -> None:
    """Gives a narrow module the values ``rows`` @ v of the teacher's attention module, in place."""
    for to, of in zip(rows_of(narrow, "v"), rows_of(attention, "v"), strict=True):
        values = of.double().unflatten(0, (full.kv_groups, full.head_dim))[: operator.kv_groups]
        to.copy_(torch.einsum("gdD,gD...->gd...", rows, values).flatten(0, 1))
