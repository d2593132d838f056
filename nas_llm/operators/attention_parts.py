"""Queries, keys and values of an attention module, whether its projections are fused or not."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from nas_llm.models.block_walk import Projection

Part = Literal["q", "k", "v"]
_FUSED = "c_attn"  # gpt2; other families with fused projections cannot slice a head
_PLACES: tuple[Part, ...] = ("q", "k", "v")


def is_fused(attention: nn.Module) -> bool:
    return _FUSED in dict(attention.named_children())


def projection_of(attention: nn.Module, part: Part) -> nn.Module:
    """The module that writes queries, keys or values; of families that fuse them, all three."""
    return attention.get_submodule(_FUSED if is_fused(attention) else f"{part}_proj")


def norm_of(attention: nn.Module, part: Part) -> nn.Module | None:
    """The norm of queries or keys, within a head or across heads."""
    return dict(attention.named_children()).get(f"{part}_norm")


def written_by(attention: nn.Module, part: Part, written: Tensor) -> Tensor:
    """Of what :func:`projection_of` writes, (..., channels), the part's own, behind its norm."""
    own = written.chunk(3, -1)[_PLACES.index(part)] if is_fused(attention) else written
    norm = norm_of(attention, part)
    if norm is None:
        return own
    (weight,) = norm.parameters()
    return norm(own.unflatten(-1, (-1, weight.shape[-1])).to(weight.dtype)).flatten(-2).to(own.dtype)


def rows_of(attention: nn.Module, part: Part) -> list[Tensor]:
    """The weight (channels, hidden) and, where there is one, the bias (channels,) of queries, keys or values: views."""
    module = projection_of(attention, part)
    bias = module._parameters["bias"]
    found = [Projection(part, module).weight, *([] if bias is None else [bias.detach()])]
    return [rows.chunk(3)[_PLACES.index(part)] for rows in found] if is_fused(attention) else found
