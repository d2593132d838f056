"""Architectures of a space as genomes: indices into its choices, one gene each.

Joint: hidden, head_dim, kv_groups, heads_per_group, ffn, depth, the ranks of a block. Per layer: hidden, head_dim, then
for every layer of the super-network kv_groups, heads_per_group, ffn, kept (2 choices) and its ranks. Last, in both, the
ranks outside of the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nas_llm.architecture import Architecture, LayerChoice, Ranks
from nas_llm.axis_choices import RankChoices, rank_key

if TYPE_CHECKING:
    from nas_llm.search_space import SearchSpace


def gene_sizes(space: SearchSpace) -> tuple[int, ...]:
    """Number of choices of every gene."""
    shared = (len(space.hidden), len(space.head_dim))
    attention_and_ffn = (len(space.kv_groups), len(space.heads_per_group), len(space.ffn))
    inside, outside = (tuple(len(values) for _, values in choices) for choices in (space.ranks, space.shared_ranks))
    if space.kind == "joint":
        return (*shared, *attention_and_ffn, len(space.depth), *inside, *outside)
    return shared + (*attention_and_ffn, 2, *inside) * len(space.layer_order) + outside


def encode(space: SearchSpace, architecture: Architecture) -> np.ndarray:
    """Indices into the choices, int64 of shape (len(gene_sizes),); dropped layers carry the largest choices.

    Raises:
        ValueError: the architecture is not a point of this space.
    """
    if not architecture.layers or architecture.num_layers not in space.depth:
        raise ValueError(f"{architecture.num_layers} layers are not in the space: depth is one of {list(space.depth)}")
    architecture = space.as_chosen(architecture)
    first = architecture.layers[0]
    shared = [_index("hidden", space.hidden, architecture.hidden), _index("head_dim", space.head_dim, first.head_dim)]
    if any(layer.head_dim != first.head_dim for layer in architecture.layers):
        raise ValueError("an architecture of this space has one head_dim for all layers")
    widths = [space.ffn_width(choice, architecture.hidden) for choice in space.ffn]
    outside = _rank_genes(space.shared_ranks, architecture.ranks)
    if space.kind == "joint":
        kept = tuple(layer.index for layer in architecture.layers)
        shapes = {(layer.shape, layer.ranks) for layer in architecture.layers}
        if len(shapes) > 1 or kept != space.most_important(len(kept)):
            raise ValueError(
                f"not in the joint space (uniform, most important layers): {architecture.summary()}, layers {kept}"
            )
        inside = _rank_genes(space.ranks, first.ranks)
        genes = [*shared, *_layer_genes(space, first, widths), space.depth.index(len(kept)), *inside, *outside]
        return np.array(genes, dtype=np.int64)
    largest = [len(values) - 1 for _, values in space.ranks]
    dropped = [len(space.kv_groups) - 1, len(space.heads_per_group) - 1, len(space.ffn) - 1, 0, *largest]
    by_index = {layer.index: layer for layer in architecture.layers}
    genes = [
        gene
        for index in range(len(space.layer_order))
        for gene in (
            [*_layer_genes(space, by_index[index], widths), 1, *_rank_genes(space.ranks, by_index[index].ranks)]
            if index in by_index
            else dropped
        )
    ]
    return np.array(shared + genes + outside, dtype=np.int64)


def decode(space: SearchSpace, genome: np.ndarray | Sequence[int]) -> Architecture:
    """Inverse of :func:`encode`; an impossible number of layers is mended by the order of their importance.

    Raises:
        ValueError: wrong length or an index out of range.
    """
    genes, sizes = [int(gene) for gene in genome], space.gene_sizes
    if len(genes) != len(sizes) or any(not 0 <= g < n for g, n in zip(genes, sizes, strict=False)):
        raise ValueError(f"a genome of this space has {len(sizes)} indices below {sizes}, got {genes}")
    hidden, head_dim = space.hidden[genes[0]], space.head_dim[genes[1]]
    outside = _ranks_of(space.shared_ranks, genes[len(genes) - len(space.shared_ranks) :])
    if space.kind == "joint":
        g, h, f, d = genes[2:6]
        shape = (space.kv_groups[g], space.heads_per_group[h], head_dim, space.ffn_width(space.ffn[f], hidden))
        ranks = _ranks_of(space.ranks, genes[6 : 6 + len(space.ranks)])
        kept = space.most_important(space.depth[d])
        return space.made_of(hidden, [LayerChoice(i, *shape, ranks) for i in kept], outside)
    width = 4 + len(space.ranks)  # genes of a layer
    rows = [genes[2 + width * i : 2 + width * (i + 1)] for i in range(len(space.layer_order))]
    layers = []
    for index in _mended(space, [i for i, row in enumerate(rows) if row[3]]):
        g, h, f, _, *r = rows[index]
        shape = (space.kv_groups[g], space.heads_per_group[h], head_dim, int(space.ffn[f]))
        layers.append(LayerChoice(index, *shape, _ranks_of(space.ranks, r)))
    return space.made_of(hidden, layers, outside)


def _mended(space: SearchSpace, kept: list[int]) -> list[int]:
    """So many layers as the space allows, nearest to those that are kept; the more important ones come or stay."""
    if len(kept) in space.depth:
        return kept
    target = min(space.depth, key=lambda depth: (abs(depth - len(kept)), -depth))
    order = range(len(space.layer_order))
    ranked = sorted(order, key=lambda index: (index not in kept, space.layer_order.index(index)))
    return sorted(ranked[:target])


def _layer_genes(space: SearchSpace, layer: LayerChoice, widths: Sequence[int]) -> list[int]:
    return [
        _index("kv_groups", space.kv_groups, layer.kv_groups),
        _index("heads_per_group", space.heads_per_group, layer.heads_per_group),
        _index("ffn", widths, layer.ffn),
    ]


def _index(axis: str, choices: Sequence[int], value: int) -> int:
    if value not in choices:
        raise ValueError(f"{axis}={value} is not in the space: it is one of {list(choices)}")
    return list(choices).index(value)


def _ranks_of(choices: RankChoices, genes: Sequence[int]) -> Ranks:
    return tuple((group, values[gene]) for (group, values), gene in zip(choices, genes, strict=True))


def _rank_genes(choices: RankChoices, ranks: Ranks) -> list[int]:
    """Indices into the choices. Raises ValueError where a rank is not among them, or a group is unknown or missing."""
    if tuple(group for group, _ in choices) != tuple(group for group, _ in ranks):
        there = ", ".join(group for group, _ in choices) or "none"
        raise ValueError(f"adapters {[group for group, _ in ranks]} are not those of the space: {there}")
    return [_index(rank_key(group), values, rank) for (group, values), (_, rank) in zip(choices, ranks, strict=True)]
