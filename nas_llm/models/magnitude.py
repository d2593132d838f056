"""The weight magnitude of sub-networks, mag(theta) = ||w_theta||_2 (paper 1, section 4.1), from prefix sums.

Every weight is squared and summed once into cells between the sizes that its axes may take; cumulative sums along all
axes then hold, at the sizes of a sub-network, the sum of squares of its slice. So a sub-network costs one look-up per
weight (those of a block that carry the same axes share a table), whatever the size of the model. Exact for every
architecture whose sizes were named; biases and norms count, tied weights count once, as in the extracted model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.models.axes import Axis, Concat, Layout, Product, Sizes, sizes_of
from nas_llm.models.elastic import whole_weights

if TYPE_CHECKING:
    from nas_llm.models.elastic import ElasticModule
    from nas_llm.models.supernet import Supernet
    from nas_llm.search_space import SearchSpace

Axes = tuple[str, ...]
Places = Mapping[str, Mapping[int, int]]
"""Axis -> size -> its place among the sizes that the axis may take."""
Tables = Mapping[Axes, np.ndarray]
"""Axes -> sums of squares, float64 with one dimension per axis, at every combination of sizes."""
Squares = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Magnitude:
    """``shared``: tables of the modules outside of the blocks; ``layers``: of every block."""

    places: Places
    shared: Tables
    layers: tuple[Tables, ...]

    @classmethod
    def of(cls, supernet: Supernet, space: SearchSpace, *, squares: Squares = torch.square) -> Magnitude:
        """The prefix sums for the sizes that ``space`` has; read anew after the weights have changed.

        ``squares`` maps a weight to the values that are summed, of its shape.
        """
        sizes = space.axis_sizes()
        places = {axis: {size: place for place, size in enumerate(choices)} for axis, choices in sizes.items()}
        full, seen = supernet.largest(), set[int]()
        shared = _tables(supernet.shared_modules, {"hidden": full.hidden}, sizes, seen, squares)
        layers = [
            _tables(modules, sizes_of(full.hidden, full.layers[index]), sizes, seen, squares)
            for index, modules in enumerate(supernet.layer_modules)
        ]
        return cls(places, shared, tuple(layers))

    def __call__(self, architecture: Architecture) -> float:
        """||w_theta||_2 of the extracted model.

        Raises:
            ValueError: a size that is not one of the space's.
        """
        try:
            total = sum(float(table[self._place(axes, architecture.hidden)]) for axes, table in self.shared.items())
            for layer in architecture.layers:
                for axes, table in self.layers[layer.index].items():
                    total += float(table[self._place(axes, architecture.hidden, layer)])
        except KeyError as error:
            raise ValueError(
                f"the magnitude of {architecture.summary()} is not known: the size {error} is not in the search space"
            ) from error
        return sqrt(total)

    def _place(self, axes: Axes, hidden: int, layer: LayerChoice | None = None) -> tuple[int, ...]:
        return tuple(
            self.places[axis][hidden if axis == "hidden" or layer is None else getattr(layer, axis)] for axis in axes
        )


def _tables(
    modules: Sequence[ElasticModule], full: Sizes, sizes: Mapping[str, Sequence[int]], seen: set[int], squares: Squares
) -> Tables:
    tables: dict[Axes, np.ndarray] = {}
    for module in modules:
        for name, (identity, weight) in whole_weights(module).items():
            if identity in seen:
                continue
            seen.add(identity)
            for block, factors in _blocks(weight, module.elastic_layouts[name], full):
                axes, table = _prefix_sums(squares(block.float()), factors, full, sizes)
                tables[axes] = tables[axes] + table if axes in tables else table
    return tables


def _blocks(
    weight: Tensor, layouts: Sequence[Layout], full: Sizes
) -> Iterator[tuple[Tensor, tuple[tuple[Layout, ...], ...]]]:
    """The parts of a fused weight, with the factors of each of their dimensions."""
    parts = [layout.parts if isinstance(layout, Concat) else (layout,) for layout in layouts]
    ends = [np.cumsum([0, *(part.size(full) for part in dimension)]).tolist() for dimension in parts]
    for choice in product(*(range(len(dimension)) for dimension in parts)):
        block, factors = weight, []
        for dim, part in enumerate(choice):
            block = block.narrow(dim, ends[dim][part], ends[dim][part + 1] - ends[dim][part])
            layout = parts[dim][part]
            factors.append(layout.factors if isinstance(layout, Product) else (layout,))
        yield block, tuple(factors)


def _prefix_sums(
    values: Tensor, factors: Sequence[Sequence[Layout]], full: Sizes, sizes: Mapping[str, Sequence[int]]
) -> tuple[Axes, np.ndarray]:
    """The axes of a weight and the sums of ``values`` over the first units of each, at every size it may take."""
    flat = [factor for dimension in factors for factor in dimension]
    sums = values.reshape([factor.size(full) for factor in flat])
    for dim, factor in reversed(list(enumerate(flat))):
        if isinstance(factor, Axis):
            ends = [size // factor.divisor for size in sizes[factor.name]]
            cells = sums.narrow(dim, 0, ends[-1]).tensor_split(ends[:-1], dim)
            sums = torch.stack([cell.sum(dim, dtype=torch.float64) for cell in cells], dim).cumsum(dim)
        else:
            sums = sums.sum(dim, dtype=torch.float64)
    return tuple(factor.name for factor in flat if isinstance(factor, Axis)), sums.cpu().numpy()
