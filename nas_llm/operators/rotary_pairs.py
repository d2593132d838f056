"""Queries and keys of attention with fewer channels of a head: which rotary pairs stay, and how queries make up for the
others.

Rotary pairs (i, i + D/2) of queries and keys stay or go together, the same ones in all heads of a layer, whose rotary
embedding is one. The logit of a query i and a key j is a sum over pairs, l = sum_p c_p(i, j), and the softmax does not
see what is the same for all keys. So with M_h (P, P) the covariances of c_p over the keys j <= i, summed over queries i
of calibration sequences, a set S of pairs with factors a_hp on the queries leaves the variance

    sum over heads h of  Var(sum_p c_p - sum_{p in S} a_hp c_p),     a_h = M_h[S, S]^-1 (M_h 1)[S]

S is built greedily, the pair first that leaves least (orthogonal matching pursuit), so that narrower heads keep the
first pairs of wider ones. Without rotary embeddings the same holds for single channels. Norms of queries and keys
count; where there are some, whose weights heads may share, queries follow the logits' scale alone: a = 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas_llm.models.axes import Orders
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import BlockOperators, Heads
from nas_llm.operators.attention_parts import norm_of, rows_of, written_by

QUERIES = 8  # of a sequence, equally spaced, whose logits are looked at
RIDGE = 1e-3


class LogitPairs:
    """``covariances``: M (G, H, P, P) of a layer, float32, P rotary pairs (channels without rotary embeddings)."""

    def __init__(self, attention: nn.Module, full: Heads, rotary: bool) -> None:
        self.attention, self.full, self.rotary = attention, full, rotary
        self.pairs = full.head_dim // 2 if rotary else full.head_dim
        device = next(attention.parameters()).device
        shape = (full.kv_groups, full.heads_per_group, self.pairs, self.pairs)
        self.covariances = torch.zeros(shape, device=device)

    def add(self, queries: Tensor, keys: Tensor, mask: Tensor, embeddings: tuple[Tensor, Tensor] | None) -> None:
        """Of one batch.

        Args:
            queries: (batch, sequence, G * H * D) as their projection writes them (fused: all three).
            keys: (batch, sequence, G * D), likewise.
            mask: (batch, sequence), of tokens that count.
            embeddings: cosines and sines (batch or 1, sequence, D).
        """
        full, length = self.full, mask.shape[1]
        at = torch.linspace(0, length - 1, min(QUERIES, length), device=mask.device).round().long()
        q = written_by(self.attention, "q", queries).float().unflatten(-1, (full.kv_groups, -1, full.head_dim))
        k = written_by(self.attention, "k", keys).float().unflatten(-1, (full.kv_groups, 1, full.head_dim))
        if embeddings is not None:
            q, k = (_rotated(one, embeddings) for one in (q, k))
        counted = mask.bool()
        for sample in range(mask.shape[0]):
            for place in at[counted[sample, at]].tolist():
                seen = counted[sample, : place + 1].nonzero().flatten()
                parts = q[sample, place] * k[sample, seen]  # (keys, G, H, D)
                if self.rotary:
                    parts = parts.unflatten(-1, (2, -1)).sum(-2)
                parts = (parts - parts.mean(0)).permute(1, 2, 3, 0)
                self.covariances += parts @ parts.mT / len(seen)

    def chosen(self, operator: Heads) -> Tensor:
        """(P,), all pairs in the order in which they are taken, for the heads that the operator keeps."""
        left = self._kept(operator).flatten(0, 1).double()
        total = left.sum(-1)
        taken = torch.zeros(self.pairs, dtype=torch.bool, device=left.device)
        floor = 1e-9 * left.diagonal(dim1=-2, dim2=-1).amax().clamp(min=1e-30)
        order = []
        for _ in range(self.pairs):
            own = left.diagonal(dim1=-2, dim2=-1)
            gain = (total.square() / own.clamp(min=floor) * (own > floor)).sum(0)
            best = int(gain.masked_fill(taken, -1).argmax())
            order.append(best)
            taken[best] = True
            column, scale = left[..., best].clone(), own[:, best].clamp(min=floor).clone()
            total = total - column * (total[:, best] / scale).unsqueeze(-1)
            left = left - column.unsqueeze(-1) * column.unsqueeze(-2) / scale[:, None, None]
        return torch.tensor(order)

    def factors(self, operator: Heads, kept: Tensor) -> Tensor:
        """a (G kept, H kept, pairs kept), of the queries of each head."""
        inner = self._kept(operator).double()
        seen = inner[..., kept, :]
        own = seen[..., kept]
        diagonal = RIDGE * own.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-30)
        damping = diagonal[..., None, None] * torch.eye(len(kept), device=own.device, dtype=own.dtype)
        # the ridge draws the factors to 1, which leaves a head without variance as it is
        return torch.linalg.solve(own + damping, seen.sum(-1) + diagonal.unsqueeze(-1))

    def _kept(self, operator: Heads) -> Tensor:
        return self.covariances[: operator.kv_groups, : operator.heads_per_group]


def orders_of(pairs: LogitPairs, operator: Heads) -> Orders:
    """Orders for ``build_sublayer``: the pairs (channels) that stay first."""
    return {"head_dim/2" if pairs.rotary else "head_dim": pairs.chosen(operator)}


def scale_queries(narrow: nn.Module, supernet: Supernet, layer: int, operator: Heads, pairs: LogitPairs) -> None:
    """Multiplies the queries of a narrow attention module by a, and by the change of the logits' scale, in place."""
    full = supernet.largest().layers[layer]
    before = supernet.attention_constants(full)
    small = BlockOperators(attention=operator).sizes(full)
    change = before["scaling"] / supernet.attention_constants(small)["scaling"] if "scaling" in before else 1.0
    norm = norm_of(narrow, "q")
    if norm is not None:
        if change != 1:
            for weight in norm.parameters():
                weight.detach().mul_(change)
        return
    kept = pairs.chosen(operator)[: operator.head_dim // 2 if pairs.rotary else operator.head_dim]
    factors = change * pairs.factors(operator, kept.to(pairs.covariances.device))
    channels = factors.repeat(1, 1, 2 if pairs.rotary else 1).flatten()
    for rows in rows_of(narrow, "q"):
        rows.mul_(channels.to(rows.dtype).view(-1, *[1] * (rows.ndim - 1)))


def _rotated(x: Tensor, embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """x (batch, sequence, G, H, D)."""
    cos, sin = (part.float()[:, :, None, None] for part in embeddings)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
