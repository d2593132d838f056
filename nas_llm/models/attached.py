"""Modules that were put beside a network's own and follow the same axes: the matrices of low-rank adapters.

Their weights have the axes of the module that they stand beside, and a rank: A is (rank, in), B is (out, rank).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from nas_llm.architecture import Architecture, Ranks
from nas_llm.models.axes import Sizes, rank_sizes, sizes_of
from nas_llm.models.elastic import ElasticModule, Layouts


@dataclass(frozen=True)
class Attached:
    """``layer`` is the index of its block, None outside of all; ``group`` names those adapters that share their rank,
    of which ``rank`` is the whole."""

    module: nn.Module
    layouts: Layouts
    layer: int | None
    group: str
    rank: int

    def full(self, network: Architecture) -> Sizes:
        """Sizes of the axes of the whole module, of a network with its ranks."""
        if self.layer is None:
            return {"hidden": network.hidden} | rank_sizes(network.ranks)
        return sizes_of(network.hidden, network.layers[self.layer])


def with_ranks(network: Architecture, modules: Sequence[Attached]) -> Architecture:
    """The largest network, with the whole rank of every group."""
    layers = tuple(replace(layer, ranks=_ranks(modules, layer.index)) for layer in network.layers)
    return replace(network, layers=layers, ranks=_ranks(modules, None))


def attached_to(layer: int | None, modules: Sequence[Attached]) -> list[ElasticModule]:
    """Those in one block, or outside of all, once they are elastic."""
    return [attached.module for attached in modules if attached.layer == layer]  # type: ignore[misc]


def _ranks(modules: Sequence[Attached], layer: int | None) -> Ranks:
    return tuple(sorted({(attached.group, attached.rank) for attached in modules if attached.layer == layer}))
