"""Modules that stand in the place of a block's attention or feed-forward module (UNAST, paper 3, section 3.1).

A sublayer reads what its module reads in the stock code (behind the norm) and writes what is added to the residual
stream: (batch, sequence, hidden) both. Fewer heads or neurons are the family's own module with sliced weights, the
first units of every axis: sort the network before. Fewer channels of a head are sliced by rotary pairs; which pairs of
the teacher's frequencies a layer keeps is its own choice (``rotary_pairs``), for every layer cuts the (cos, sin) that
the model hands it.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from nas_llm.architecture import LayerChoice
from nas_llm.models.axes import Orders, reorder, sizes_of, take
from nas_llm.models.elastic import ElasticModule, make_plain
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import BlockOperators, Ffn, Heads, Identity, Linear, Operator, Sublayer


class IdentitySublayer(nn.Module):
    """Adds nothing to the residual stream; an attention's place expects a pair, the second its attention weights."""

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        nothing = torch.zeros_like(hidden_states)
        return (nothing, None) if self.pair else nothing


class LinearSublayer(nn.Module):
    """hidden_states @ W^T + b, W (hidden, hidden); ``pair`` as in :class:`IdentitySublayer`."""

    def __init__(self, hidden: int, pair: bool, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.pair = pair
        self.linear = nn.Linear(hidden, hidden, device=device, dtype=dtype)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        mapped = self.linear(hidden_states)
        return (mapped, None) if self.pair else mapped


class NarrowAttention(nn.Module):
    """What :func:`_narrow` adds to an attention module: the rotary embeddings of the pairs that its heads keep."""

    rotary_pairs: Tensor
    plain_class: type[nn.Module]

    def forward(self, *args: Any, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any) -> Any:
        half = position_embeddings[0].shape[-1] // 2
        channels = torch.cat([self.rotary_pairs, self.rotary_pairs + half])
        narrow = tuple(part.index_select(-1, channels) for part in position_embeddings)
        return super().forward(*args, position_embeddings=narrow, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Its class has no name to be pickled by: it is made again from the plain one."""
        return _blank, (self.plain_class,), self.__dict__


def sublayer_path(supernet: Supernet, sublayer: Sublayer) -> str:
    """Name of a sublayer's module inside a block.

    Raises:
        ValueError: the family has no module for it.
    """
    path = supernet.sublayers[sublayer]
    if path is None:
        raise ValueError(
            f"family {supernet.family!r} has its feed-forward projections in the block itself, not in a module that "
            "an operator could replace: choose a pool of attention operators, pool=attention_only"
        )
    return path


def sublayer_of(supernet: Supernet, layer: int, sublayer: Sublayer) -> nn.Module:
    """The teacher's own module. Raises as :func:`sublayer_path`."""
    return supernet.blocks[layer].get_submodule(sublayer_path(supernet, sublayer))


def refuse_operator(supernet: Supernet, layer: int, sublayer: Sublayer, operator: Operator) -> None:
    """Raises ValueError where the operator does not fit into that place of this network."""
    sublayer_path(supernet, sublayer)
    if supernet.is_rotated:
        raise ValueError(
            "the residual stream of this model is rotated by its sublayers (SliceGPT), whose place no operator can "
            "take: set model.path to the network it was made from"
        )
    where, full = f"layer {layer}, {sublayer}: operator {operator.name}", supernet.largest().layers[layer]
    wrong = {Heads: "mlp", Ffn: "attention"}.get(type(operator))
    if wrong == sublayer:
        raise ValueError(f"{where} does not belong into this place")
    if isinstance(operator, Ffn) and not 1 <= operator.ffn <= full.ffn:
        raise ValueError(f"{where}: allowed are 1 to {full.ffn} neurons")
    if isinstance(operator, Heads):
        kept = (operator.kv_groups, operator.heads_per_group, operator.head_dim)
        limits = full.shape[:3]
        if any(not 1 <= size <= limit for size, limit in zip(kept, limits, strict=True)):
            raise ValueError(f"{where}: allowed are at most {'x'.join(map(str, limits))}, each at least 1")
        if operator.head_dim != full.head_dim:
            if "head_dim" not in supernet.elastic_axes:
                raise ValueError(
                    f"{where}: family {supernet.family!r} cannot slice the channels of a head: allowed is "
                    f"{full.head_dim}"
                )
            if operator.head_dim % 2:
                raise ValueError(f"{where}: a head's channels are rotary pairs: allowed is an even number")
    if isinstance(operator, Identity | Linear) and sublayer == "attention" and supernet.mixes_attention:
        raise ValueError(
            f"{where}: family {supernet.family!r} mixes sliding and full attention, whose caches go by the place of a "
            "layer, so that no layer may go without attention; choose a pool without identity and linear there"
        )


def build_sublayer(
    supernet: Supernet, layer: int, sublayer: Sublayer, operator: Operator, *, orders: Orders | None = None
) -> nn.Module:
    """A plain module that shares nothing with the super-network, with the weights of its first units.

    ``teacher``, ``sparse`` and ``quantized`` give a copy of the dense module, which the caller makes sparse or
    quantises; ``linear`` gives zeros.

    Args:
        supernet: the teacher, sorted.
        orders: of the channels of a head, where it is narrowed: ``head_dim/2`` (head_dim / 2,), the rotary pairs, the
            most important first; ``head_dim`` (head_dim,), the channels of values. None: as they are.

    Raises:
        ValueError: as :func:`refuse_operator`.
    """
    refuse_operator(supernet, layer, sublayer, operator)
    pair, hidden = sublayer == "attention", supernet.largest().hidden
    if isinstance(operator, Identity):
        return IdentitySublayer(pair)
    module = sublayer_of(supernet, layer, sublayer)
    if isinstance(operator, Linear):
        weight = next(module.parameters())
        made = LinearSublayer(hidden, pair, device=weight.device, dtype=weight.dtype)
        for parameter in made.parameters():
            nn.init.zeros_(parameter)
        return made
    full = supernet.largest().layers[layer]
    choice = BlockOperators(**{sublayer: operator}).sizes(full)
    narrow = choice.head_dim != full.head_dim
    small = _cut(module, supernet, choice, orders if narrow else None)
    if isinstance(operator, Heads):
        for name, constant in supernet.attention_constants(choice).items():
            vars(small)[name] = constant
        if narrow and supernet.is_rotary:
            pairs = torch.arange(full.head_dim // 2) if orders is None else orders["head_dim/2"]
            _narrow(small, pairs[: choice.head_dim // 2])
    return small


def _cut(module: nn.Module, supernet: Supernet, choice: LayerChoice, orders: Orders | None) -> nn.Module:
    active = sizes_of(supernet.largest().hidden, choice)
    memo: dict[int, Any] = {id(supernet.config): supernet.config}  # one configuration for all, not a copy in each
    for part in module.modules():
        if not isinstance(part, ElasticModule):
            continue
        for name, whole in part._parameters.items():
            if whole is None:
                continue
            layouts, full = part.elastic_layouts[name], part.elastic_full
            ordered = whole.detach() if orders is None else reorder(whole.detach(), layouts, full, orders)
            kept = take(ordered, layouts, full, active).clone(memory_format=torch.contiguous_format)
            memo[id(whole)] = nn.Parameter(kept, requires_grad=whole.requires_grad)
    small = copy.deepcopy(module, memo)
    for part in small.modules():
        make_plain(part)
    return small


def _narrow(attention: nn.Module, pairs: Tensor) -> None:
    """Lets an attention module see the rotary embeddings of ``pairs`` (head_dim / 2,) alone, in place."""
    device = next(attention.parameters()).device
    plain: Any = type(attention)
    attention.__class__ = _narrow_class(plain)
    attention.register_buffer("rotary_pairs", pairs.to(device, torch.int64))


@cache
def _narrow_class(plain: type[nn.Module]) -> type[nn.Module]:
    return type(f"Narrow{plain.__name__}", (NarrowAttention, plain), {"plain_class": plain})


def _blank(plain: type[nn.Module]) -> nn.Module:
    named: Any = plain
    made = _narrow_class(named)
    return made.__new__(made)
