"""Parameters and multiply-accumulates of sub-networks: arithmetic on axis sizes, no tensor touched.

Every count of one block is a polynomial in the residual width, a + b hidden + c hidden^2, whose coefficients depend
on the block's own shape (and the ranks of its adapters) alone; they are kept per shape, so that a whole architecture
costs one look-up per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn
from transformers.pytorch_utils import Conv1D

from nas_llm.architecture import Architecture, LayerChoice, Ranks
from nas_llm.models.axes import Fixed, Layout, count, rank_sizes, sizes_of

if TYPE_CHECKING:
    from nas_llm.models.elastic import ElasticModule

Polynomial = tuple[int, int, int]
Shape = tuple[int, int, int, int, Ranks]
Weights = tuple[tuple[Layout, ...], ...]


@dataclass(frozen=True)
class Costs:
    """Layouts of a super-network's ``weights``, each once (parameters), and ``projections`` (multiply-accumulates).

    Raises:
        ValueError: from every count, an architecture that is larger than ``full``.
    """

    full: Architecture
    weights: Weights
    projections: Weights
    layer_weights: tuple[Weights, ...]
    layer_projections: tuple[Weights, ...]
    _parameters: dict[tuple[int, Shape], Polynomial] = field(default_factory=dict, compare=False, repr=False)
    _macs: dict[tuple[int, Shape], Polynomial] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls, shared: Sequence[ElasticModule], layers: Sequence[Sequence[ElasticModule]], full: Architecture
    ) -> Costs:
        seen: set[int] = set()
        weights = _weights(shared, seen)
        layer_weights = tuple(_weights(layer, seen) for layer in layers)
        layer_projections = tuple(_projections(layer) for layer in layers)
        same = full.is_uniform and len({layer.ranks for layer in full.layers}) == 1
        if same and len(set(layer_weights)) == len(set(layer_projections)) == 1:  # a table for every layer
            layer_weights, layer_projections = layer_weights[:1], layer_projections[:1]
        return cls(full, weights, _projections(shared), layer_weights, layer_projections)

    def num_parameters(self, architecture: Architecture) -> int:
        sizes = self._shared_sizes(architecture)
        total = sum(count(layout, sizes) for layout in self.weights)
        return total + self._sum(architecture, self.layer_weights, self._parameters)

    def macs(self, architecture: Architecture, batch_size: int, sequence_length: int) -> int:
        tokens = batch_size * sequence_length
        sizes = self._shared_sizes(architecture)
        projected = sum(count(layout, sizes) for layout in self.projections)
        projected += self._sum(architecture, self.layer_projections, self._macs)
        attended = sum(layer.kv_groups * layer.heads_per_group * layer.head_dim for layer in architecture.layers)
        return tokens * (projected + 2 * sequence_length * attended)

    def _shared_sizes(self, architecture: Architecture) -> dict[str, int]:
        sizes = {"hidden": architecture.hidden}
        if self.full.ranks:
            architecture.refuse_misfit(self.full)
            sizes |= rank_sizes(self.full.ranks) | rank_sizes(architecture.ranks)
        return sizes

    def _sum(
        self, architecture: Architecture, layouts: tuple[Weights, ...], kept: dict[tuple[int, Shape], Polynomial]
    ) -> int:
        hidden, layers, full = architecture.hidden, architecture.layers, self.full
        if not layers or hidden > full.hidden or layers[-1].index >= len(full.layers):
            architecture.refuse_misfit(full)
        a = b = c = 0
        same = len(layouts) == 1
        for layer in layers:
            key = (
                0 if same else layer.index,
                (layer.kv_groups, layer.heads_per_group, layer.head_dim, layer.ffn, layer.ranks),
            )
            terms = kept.get(key)
            if terms is None:
                architecture.refuse_misfit(full)  # a shape that was counted before fits
                terms = kept[key] = _polynomial(layouts[key[0]], layer, full.layers[layer.index].ranks)
            a += terms[0]
            b += terms[1]
            c += terms[2]
        return a + b * hidden + c * hidden * hidden


def _weights(modules: Sequence[ElasticModule], seen: set[int]) -> Weights:
    found = []
    for module in modules:
        for name, layout in module.elastic_layouts.items():
            weight = id(module._parameters.get(name, module))  # that of a quantised layer is no parameter, and not tied
            if weight not in seen:
                seen.add(weight)
                found.append(layout)
    return tuple(found)


def _projections(modules: Sequence[ElasticModule]) -> Weights:
    linear = [module.elastic_layouts["weight"] for module in modules if isinstance(module, nn.Linear | Conv1D)]
    # Of an embedding's adapter the first matrix, which holds the vocabulary, is looked up and the second multiplied.
    factors = [f for module in modules if isinstance(module, nn.ParameterDict) for f in module.elastic_layouts.values()]
    return tuple(linear + [layout for layout in factors if not any(isinstance(part, Fixed) for part in layout)])


def _polynomial(layouts: Weights, layer: LayerChoice, whole: Ranks) -> Polynomial:
    """Coefficients of a count in the residual width, from its values at 0, 1 and 2; ranks left out are ``whole``."""

    def at(hidden: int) -> int:
        sizes = rank_sizes(whole) | sizes_of(hidden, layer)
        return sum(count(layout, sizes) for layout in layouts)

    zero, one, two = at(0), at(1), at(2)
    c = (two - 2 * one + zero) // 2
    return zero, one - zero - c, c
