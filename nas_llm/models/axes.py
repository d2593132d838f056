"""The layout algebra: a weight dimension as a product, or a concatenation of products, of named axes.

``G * H * D`` reads: the units of this dimension run over KV groups, in each over query heads, in each over head
channels. ``Q + K + V`` reads: three such blocks behind each other (a fused projection). From the layout alone
follow the size of a dimension, its active slice, and the permutation that sorts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from nas_llm.architecture import LayerChoice, Ranks

Sizes = Mapping[str, int]
"""Number of units per axis name."""
Orders = Mapping[str, Tensor]
"""New order of the units of an axis (of rotary pairs: ``head_dim/2``); for heads_per_group one row per (old) group."""


@dataclass(frozen=True)
class Layout:
    """One dimension of a weight."""

    def __mul__(self, other: Layout) -> Product:
        return Product(_factors(self) + _factors(other))

    def __add__(self, other: Layout) -> Concat:
        return Concat(_parts(self) + _parts(other))

    def size(self, sizes: Sizes) -> int:
        """Number of units along this dimension."""
        raise NotImplementedError

    def take(self, tensor: Tensor, dim: int, full: Sizes, active: Sizes) -> Tensor:
        """The active units of ``tensor`` along ``dim``: a view wherever strides allow one, differentiable."""
        raise NotImplementedError

    def order(self, full: Sizes, orders: Orders) -> Tensor:
        """Old positions in their new order, shape (size,)."""
        raise NotImplementedError

    def carries(self, axes: tuple[str, ...]) -> bool:
        """Whether whole units of all these axes lie along this dimension."""
        raise NotImplementedError

    def fold(self, values: Tensor, full: Sizes, axes: tuple[str, ...]) -> Tensor:
        """Sums (size, ...) values into the units of ``axes``: (units of the first, ..., of the last, ...)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Axis(Layout):
    """``1 / divisor`` of the units of a named axis (rotary halves: ``Fixed(2) * Axis("head_dim", 2)``)."""

    name: str
    divisor: int = 1

    def size(self, sizes: Sizes) -> int:
        return sizes[self.name] // self.divisor

    def take(self, tensor: Tensor, dim: int, full: Sizes, active: Sizes) -> Tensor:
        units = self.size(active)
        return tensor if units == tensor.shape[dim] else tensor.narrow(dim, 0, units)

    def order(self, full: Sizes, orders: Orders) -> Tensor:
        order = orders.get(self.name if self.divisor == 1 else f"{self.name}/{self.divisor}")
        return torch.arange(self.size(full)) if order is None else order

    def carries(self, axes: tuple[str, ...]) -> bool:
        return axes == (self.name,) and self.divisor == 1

    def fold(self, values: Tensor, full: Sizes, axes: tuple[str, ...]) -> Tensor:
        return values


@dataclass(frozen=True)
class Fixed(Layout):
    """Units that no sub-network drops (vocabulary, the three of a fused q, k, v)."""

    units: int

    def size(self, sizes: Sizes) -> int:
        return self.units

    def take(self, tensor: Tensor, dim: int, full: Sizes, active: Sizes) -> Tensor:
        return tensor

    def order(self, full: Sizes, orders: Orders) -> Tensor:
        return torch.arange(self.units)

    def carries(self, axes: tuple[str, ...]) -> bool:
        return False


@dataclass(frozen=True)
class Product(Layout):
    """Nested units, the first factor outermost."""

    factors: tuple[Layout, ...]

    def size(self, sizes: Sizes) -> int:
        return prod(factor.size(sizes) for factor in self.factors)

    def take(self, tensor: Tensor, dim: int, full: Sizes, active: Sizes) -> Tensor:
        if self.size(active) == tensor.shape[dim]:
            return tensor
        inner_full = Product(self.factors[1:]).size(full)
        if Product(self.factors[1:]).size(active) == inner_full:  # only whole outer units go: a prefix, so a view
            return tensor.narrow(dim, 0, self.factors[0].size(active) * inner_full)
        nested = tensor.unflatten(dim, [factor.size(full) for factor in self.factors])
        for offset, factor in enumerate(self.factors):
            nested = factor.take(nested, dim + offset, full, active)
        return nested.flatten(dim, dim + len(self.factors) - 1)

    def order(self, full: Sizes, orders: Orders) -> Tensor:
        positions = torch.arange(self.size(full)).reshape([factor.size(full) for factor in self.factors])
        names = [factor.name if isinstance(factor, Axis) else "" for factor in self.factors]
        if "heads_per_group" in orders and "heads_per_group" in names:
            # Every group has its own order of heads, by the group's old place: sort inside before the groups move.
            groups, heads = names.index("kv_groups"), names.index("heads_per_group")
            index = orders["heads_per_group"].reshape(
                [n if i in (groups, heads) else 1 for i, n in enumerate(positions.shape)]
            )
            positions = positions.gather(heads, index.expand_as(positions))
        for place, factor in enumerate(self.factors):
            if names[place] != "heads_per_group":
                positions = positions.index_select(place, factor.order(full, orders))
        return positions.flatten()

    def carries(self, axes: tuple[str, ...]) -> bool:
        return all(any(factor.carries((axis,)) for factor in self.factors) for axis in axes)

    def fold(self, values: Tensor, full: Sizes, axes: tuple[str, ...]) -> Tensor:
        nested = values.unflatten(0, [factor.size(full) for factor in self.factors])
        others = [i for i, factor in enumerate(self.factors) if not any(factor.carries((axis,)) for axis in axes)]
        return nested.sum(others) if others else nested


@dataclass(frozen=True)
class Concat(Layout):
    """Blocks behind each other."""

    parts: tuple[Layout, ...]

    def size(self, sizes: Sizes) -> int:
        return sum(part.size(sizes) for part in self.parts)

    def take(self, tensor: Tensor, dim: int, full: Sizes, active: Sizes) -> Tensor:
        if self.size(active) == tensor.shape[dim]:
            return tensor
        blocks = tensor.split([part.size(full) for part in self.parts], dim)
        return torch.cat(
            [part.take(block, dim, full, active) for part, block in zip(self.parts, blocks, strict=True)], dim
        )

    def order(self, full: Sizes, orders: Orders) -> Tensor:
        positions, start = [], 0
        for part in self.parts:
            positions.append(part.order(full, orders) + start)
            start += part.size(full)
        return torch.cat(positions)

    def carries(self, axes: tuple[str, ...]) -> bool:
        return any(part.carries(axes) for part in self.parts)

    def fold(self, values: Tensor, full: Sizes, axes: tuple[str, ...]) -> Tensor:
        blocks = values.split([part.size(full) for part in self.parts])
        pairs = zip(self.parts, blocks, strict=True)
        return torch.stack([part.fold(block, full, axes) for part, block in pairs if part.carries(axes)]).sum(0)


def take(tensor: Tensor, layout: tuple[Layout, ...], full: Sizes, active: Sizes) -> Tensor:
    """The active slice of a weight, one layout per dimension."""
    for dim, dimension in enumerate(layout):
        tensor = dimension.take(tensor, dim, full, active)
    return tensor


def reorder(tensor: Tensor, layout: tuple[Layout, ...], full: Sizes, orders: Orders) -> Tensor:
    """A copy of a weight with every dimension in its new order."""
    for dim, dimension in enumerate(layout):
        tensor = tensor.index_select(dim, dimension.order(full, orders).to(tensor.device))
    return tensor


def count(layout: tuple[Layout, ...], sizes: Sizes) -> int:
    """Number of elements of a weight."""
    return prod(dimension.size(sizes) for dimension in layout)


def sizes_of(hidden: int, choice: LayerChoice) -> dict[str, int]:
    """Sizes of the axes that one block sees."""
    return {
        "hidden": hidden,
        "kv_groups": choice.kv_groups,
        "heads_per_group": choice.heads_per_group,
        "head_dim": choice.head_dim,
        "ffn": choice.ffn,
        **rank_sizes(choice.ranks),
    }


def layout_axes(layout: Layout) -> frozenset[str]:
    """Names of the axes that run along a dimension."""
    if isinstance(layout, Axis):
        return frozenset((layout.name,))
    inner = layout.factors if isinstance(layout, Product) else layout.parts if isinstance(layout, Concat) else ()
    return frozenset().union(*map(layout_axes, inner))


def rank_axis(group: str) -> Axis:
    """The axis of the ranks of a group of adapters."""
    return Axis(f"rank.{group}")


def rank_sizes(ranks: Ranks) -> dict[str, int]:
    """Sizes of the axes of ranks."""
    return {rank_axis(group).name: rank for group, rank in ranks}


def _factors(layout: Layout) -> tuple[Layout, ...]:
    return layout.factors if isinstance(layout, Product) else (layout,)


def _parts(layout: Layout) -> tuple[Layout, ...]:
    return layout.parts if isinstance(layout, Concat) else (layout,)
