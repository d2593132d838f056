"""Attention with fewer channels of a head: which rotary pairs stay, what values become, and the scale of the logits.

Rotary pairs (i, i + D/2) of queries and keys stay or go together, the same ones in all heads of a layer, whose rotary
embedding is one. A pair's part in the logits is scored by the energies of its queries and keys over calibration tokens,

    score_p = sum over groups g and their heads h of  E |q_ghp|^2  E |k_gp|^2      (behind norms of q and k, if any)

Without rotary embeddings the same is a score of channels. Logits are multiplied by a scale that follows the head size;
queries are divided by its change, for the pairs that stay give what they gave.

Values are not chosen by channels. With z_gh (D,) the output of a head and W_gh (hidden, D) its part of the output
projection, attention is the same for values R v and projections W R^-1, for any invertible R of a group. The best
d-dimensional R minimises sum_h E || W_gh (1 - L R) z_gh ||^2 (in one head; of several the sums of covariances and
squares are taken): with C = sum_h E z z^T and B = sum_h W^T W, the first d eigenvectors V of C^1/2 B C^1/2 give
R = V^T C^-1/2 (d, D) and L = C^1/2 V (D, d).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from nas_llm.models.axes import Orders
from nas_llm.models.block_walk import Projection
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import BlockOperators, Heads

Part = Literal["q", "k", "v"]
_PLACES: tuple[Part, ...] = ("q", "k", "v")


class QueryKeyEnergies:
    """Sums of squares over tokens of every channel of the queries (G, H, D) and keys (G, D) of a layer."""

    def __init__(self, attention: nn.Module, groups: int, heads: int, head_dim: int) -> None:
        self.attention, self.shape = attention, (groups, heads, head_dim)
        device = next(attention.parameters()).device
        self.queries = torch.zeros(groups, heads, head_dim, device=device)
        self.keys = torch.zeros(groups, head_dim, device=device)

    def add(self, part: Part, written: Tensor) -> None:
        """written: (tokens, channels), float32, by :func:`projection_of` ``part``."""
        own = written.chunk(3, -1)[_PLACES.index(part)] if _is_fused(self.attention) else written
        norm = dict(self.attention.named_children()).get(f"{part}_norm")
        if norm is not None:
            weight = next(norm.parameters())
            own = norm(own.unflatten(-1, (-1, weight.shape[-1])).to(weight.dtype)).float().flatten(-2)
        held = self.queries if part == "q" else self.keys
        held += own.square().sum(0).view_as(held)

    def scores(self, operator: Heads, rotary: bool) -> Tensor:
        """(D / 2,) of rotary pairs, or (D,) of channels, over the heads that the operator keeps."""
        queries = self.queries[: operator.kv_groups, : operator.heads_per_group].sum(1)
        keys = self.keys[: operator.kv_groups]
        if rotary:
            queries, keys = (part.unflatten(-1, (2, -1)).sum(-2) for part in (queries, keys))
        return (queries * keys).sum(0)


def orders_of(energies: QueryKeyEnergies, operator: Heads, rotary: bool) -> Orders:
    """Orders for ``build_sublayer``: the most important pairs (channels) first."""
    order = energies.scores(operator, rotary).argsort(descending=True, stable=True).cpu()
    return {"head_dim/2" if rotary else "head_dim": order}


def projection_of(attention: nn.Module, part: Part) -> nn.Module:
    """The module that writes queries, keys or values; of families that fuse them, all three."""
    children = dict(attention.named_children())
    return children["c_attn"] if _is_fused(attention) else children[f"{part}_proj"]


def scale_queries(narrow: nn.Module, supernet: Supernet, layer: int, operator: Heads) -> None:
    """Divides the queries of a narrow attention module by the change of the logits' scale, in place."""
    full = supernet.largest().layers[layer]
    before = supernet.attention_constants(full)
    if "scaling" not in before:
        return
    small = BlockOperators(attention=operator).sizes(full)
    factor = before["scaling"] / supernet.attention_constants(small)["scaling"]
    norm = dict(narrow.named_children()).get("q_norm")
    for rows in rows_of(narrow, "q") if norm is None else [p.detach() for p in norm.parameters()]:
        rows.mul_(factor)


def rows_of(attention: nn.Module, part: Part) -> list[Tensor]:
    """The weight (channels, hidden) and, where there is one, the bias (channels,) of queries, keys or values: views."""
    module = projection_of(attention, part)
    bias = module._parameters["bias"]
    found = [Projection(part, module).weight, *([] if bias is None else [bias.detach()])]
    return [rows.chunk(3)[_PLACES.index(part)] for rows in found] if _is_fused(attention) else found


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


def _is_fused(attention: nn.Module) -> bool:
    return "c_attn" in dict(attention.named_children())
