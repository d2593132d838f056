"""Layers that are kept whole or not at all, in spaces of a network in which they differ, or are operators (paper 3).

``blocks`` are the network's layers. A kept one has its own shape, whatever the one choice of the space says, and of the
ranks of adapters those of its own groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from nas_llm.architecture import Architecture, LayerChoice, Ranks
from nas_llm.axis_choices import RankChoices


def with_own_shapes(layers: Iterable[LayerChoice], blocks: Sequence[LayerChoice]) -> list[LayerChoice]:
    """The kept layers as the network has them, with the ranks that were chosen for their adapters."""
    return [replace(blocks[layer.index], ranks=_of_groups(layer.ranks, blocks[layer.index])) for layer in layers]


def as_chosen(
    architecture: Architecture,
    blocks: Sequence[LayerChoice],
    shape: tuple[int, int, int, int],
    ranks: RankChoices,
    *,
    uniform: bool,
) -> Architecture:
    """Inverse of :func:`with_own_shapes`: the choices that the architecture was made of, each layer of the one
    ``shape`` of the space. Ranks of adapters that a layer, or where ranks are ``uniform`` every kept one, has not are
    the largest.

    Raises:
        ValueError: a layer is cut, or its adapters are not its own.
    """
    if any(not 0 <= c.index < len(blocks) or c.shape != blocks[c.index].shape for c in architecture.layers):
        raise ValueError(f"not in the space, which keeps every layer whole: {architecture.summary()}")
    whole = {group: values[-1] for group, values in ranks}
    if uniform:
        for layer in architecture.layers:
            whole |= dict(layer.ranks)
    layers = []
    for layer in architecture.layers:
        chosen = tuple((whole | dict(layer.ranks)).items())
        if layer.ranks != _of_groups(chosen, blocks[layer.index]):
            raise ValueError(f"adapters {dict(layer.ranks)} are not those of layer {layer.index} of the space")
        layers.append(LayerChoice(layer.index, *shape, chosen))
    return Architecture(architecture.hidden, tuple(layers), architecture.ranks)


def count_uniform(kept: Iterable[Sequence[int]], blocks: Sequence[LayerChoice], ranks: RankChoices) -> int:
    """Number of networks of one of these sets of layers, with one rank for every group of adapters in them."""
    groups = (set().union(*(_groups(blocks[index]) for index in indices)) for indices in kept)
    return sum(_combinations(found, ranks) for found in groups)


def count_subsets(depths: Iterable[int], blocks: Sequence[LayerChoice], ranks: RankChoices) -> int:
    """Number of networks of any so many layers, each with ranks of its own."""
    by_depth = [1]  # number of ways to keep so many of the layers so far
    for layer in blocks:
        ways, padded = _combinations(_groups(layer), ranks), [*by_depth, 0]
        by_depth = [padded[d] + (ways * padded[d - 1] if d else 0) for d in range(len(padded))]
    return sum(by_depth[depth] for depth in depths)


def _combinations(groups: Iterable[str], ranks: RankChoices) -> int:
    choices = {group: len(values) for group, values in ranks}
    return math.prod(choices[group] for group in groups)


def _groups(layer: LayerChoice) -> set[str]:
    return {group for group, _ in layer.ranks}


def _of_groups(ranks: Ranks, layer: LayerChoice) -> Ranks:
    """Of these ranks those whose groups the layer has."""
    there = _groups(layer)
    return tuple(sorted((group, rank) for group, rank in ranks if group in there))
