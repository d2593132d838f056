"""A loss of the output layer without ever holding the logits of all tokens.

For hidden states h (tokens, hidden), an output layer z = cap(W h + b), or cap(W h + B f + b) with the features f of a
low-rank adapter, and a loss that is a sum over tokens, the logits are made chunk by chunk; of each chunk the gradients
dL/dh, dL/dW, dL/db (and dL/df, dL/dB) are taken at once and its logits are dropped. So a step holds (chunk_tokens,
vocabulary) numbers instead of several times (tokens, vocabulary), for the same number of operations. Exact: every
token's loss reads its own logits alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ChunkLoss = Callable[[Tensor, int, int], Tensor]
"""(logits of the tokens start..stop, start, stop) -> sum of their losses."""


@dataclass(frozen=True)
class OutputLayer:
    """From hidden states to logits: ``softcap * tanh((h @ weight.T + bias) / softcap)``, without the cap where it is
    None.

    weight: (vocabulary, hidden); bias: (vocabulary,) or None; low_rank: (vocabulary, rank) or None, multiplies what
    follows the hidden states, the features (..., rank) of a low-rank adapter.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    low_rank: Tensor | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., hidden [+ rank]) -> (..., vocabulary)."""
        return self.cap(self.products(hidden))

    def products(self, hidden: Tensor) -> Tensor:
        """The logits before the cap."""
        if self.low_rank is None:
            return F.linear(hidden, self.weight, self.bias)
        width = self.weight.shape[1]
        return F.linear(hidden[..., :width], self.weight, self.bias) + hidden[..., width:] @ self.low_rank.T

    def cap(self, logits: Tensor) -> Tensor:
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def chunked_loss(
    hidden: Tensor, layer: OutputLayer, loss: ChunkLoss, *, chunk_tokens: int, gradient_scale: float = 1.0
) -> Tensor:
    """Sum of ``loss`` over all tokens, differentiable in ``hidden`` (tokens, hidden [+ rank]), ``layer.weight``,
    ``layer.bias`` and ``layer.low_rank``.

    Gradients are taken at ``gradient_scale`` times their size (a loss scaler's factor keeps half-precision ones from
    vanishing) and divided by it again in the backward pass. Autocast's type is used for the products where autocast is
    on. The gradients exist once: differentiating twice raises.
    """
    weights = (layer.weight, layer.bias, layer.low_rank)
    trained = any(weight is not None and weight.requires_grad for weight in weights)
    if torch.is_grad_enabled() and (hidden.requires_grad or trained):
        return _ChunkedLoss.apply(hidden, *weights, layer.softcap, loss, chunk_tokens, gradient_scale)
    chunks = [
        loss(layer.logits(hidden[start : start + chunk_tokens]), start, min(start + chunk_tokens, len(hidden)))
        for start in range(0, len(hidden), chunk_tokens)
    ]
    return torch.stack(chunks).sum() if chunks else hidden.new_zeros((), dtype=torch.float32)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        low_rank: Tensor | None,
        softcap: float | None,
        loss: ChunkLoss,
        chunk_tokens: int,
        gradient_scale: float,
    ) -> Tensor:
        dtype = _product_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            cast = [None if one is None else one.to(dtype) for one in (bias, low_rank)]
            layer = OutputLayer(weight.to(dtype), cast[0], softcap, cast[1])
            gradients = _Gradients.like(hidden, weight, bias, low_rank, ctx.needs_input_grad)
            total = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=hidden.device)
            for start in range(0, len(hidden), chunk_tokens):
                stop = min(start + chunk_tokens, len(hidden))
                total += gradients.add_chunk(hidden[start:stop].to(dtype), layer, loss, start, stop, gradient_scale)
        ctx.gradients, ctx.scale = gradients, gradient_scale
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a chunked loss were already used; compute the loss again")
        gradients, ctx.gradients = ctx.gradients, None
        factor = grad_output / ctx.scale
        scaled = [
            None if g is None else g.to(t).mul_(factor)
            for g, t in zip(gradients.tensors, gradients.dtypes, strict=True)
        ]
        return (*scaled, None, None, None, None)


@dataclass
class _Gradients:
    """Gradients of hidden (tokens, hidden [+ rank]), weight (vocabulary, hidden), bias (vocabulary,) and low_rank
    (vocabulary, rank), filled chunk by chunk."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    low_rank: Tensor | None
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def like(
        cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, low_rank: Tensor | None, needed: tuple[bool, ...]
    ) -> _Gradients:
        def sums(of: Tensor | None, asked: bool) -> Tensor | None:
            return _zeros_like(of) if of is not None and asked else None

        dtypes = (hidden.dtype, *(weight.dtype if of is None else of.dtype for of in (weight, bias, low_rank)))
        return cls(
            torch.empty_like(hidden) if needed[0] else None,
            sums(weight, needed[1]),
            sums(bias, needed[2]),
            sums(low_rank, needed[3]),
            dtypes,
        )

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return (self.hidden, self.weight, self.bias, self.low_rank)

    def add_chunk(
        self, hidden: Tensor, layer: OutputLayer, loss: ChunkLoss, start: int, stop: int, scale: float
    ) -> Tensor:
        """Take the chunk's gradients; hidden: (stop - start, hidden [+ rank]) in the type of the products. Returns the
        chunk's loss."""
        width = layer.weight.shape[1]
        logits = layer.products(hidden).requires_grad_()
        with torch.enable_grad():
            value = loss(layer.cap(logits), start, stop)
            (slope,) = torch.autograd.grad(value * scale, logits)
        if self.hidden is not None:
            self.hidden[start:stop, :width] = slope @ layer.weight
            if layer.low_rank is not None:
                self.hidden[start:stop, width:] = slope @ layer.low_rank
        if self.weight is not None:
            _add_product(self.weight, slope.T, hidden[:, :width])
        if self.low_rank is not None:
            _add_product(self.low_rank, slope.T, hidden[:, width:])
        if self.bias is not None:
            self.bias += slope.sum(0, dtype=self.bias.dtype)
        return value.detach()


def _zeros_like(of: Tensor) -> Tensor:
    """Chunks add up in float32 at least: bf16 sums would lose the small ones."""
    return torch.zeros(of.shape, dtype=torch.promote_types(of.dtype, torch.float32), device=of.device)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _product_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
