"""Grid search: a regular grid over the choices of every axis, as fine as the budget allows, the ends always on it.

The grid is that of networks whose layers all have the same shape (the most important layers of every depth), in the
per-layer space as in the joint one: with a choice per layer, even the corners of the whole space would be 2 ** genes.
Axis by axis, one level is added to the axis with the fewest of those whose grid the budget still holds. What is left of
the budget goes to points of the next finer grid, evenly spread over it, and once that ends to random ones.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.search.genomes import Genome
from nas_llm.search.rounds import RoundSearch

Levels = dict[str, int]


@dataclass
class GridSearch(RoundSearch):
    """Asks for the whole grid in order, from the smallest network to the largest, whatever the answers."""

    name: ClassVar[str] = "grid"

    def _propose(self, wanted: int) -> list[Genome]:
        if self.genomes.seen:  # networks of one shape are all asked for
            return self.genomes.unseen(wanted)
        levels = grid_levels(self.space.choice_counts, wanted)
        found = self.genomes.distinct(self._points(levels))[:wanted]
        while len(found) < wanted and (finer := _finer(levels, self.space.choice_counts)) is not None:
            levels = finer
            more = [genome for genome in self.genomes.distinct(self._points(levels)) if genome not in set(found)]
            found += _spread(more, wanted - len(found))
        return found

    def _points(self, levels: Mapping[str, int]) -> Iterator[Architecture]:
        axes = [_positions(count, levels[axis]) for axis, count in self.space.choice_counts.items()]
        for positions in itertools.product(*axes):
            yield self.space.uniform(dict(zip(self.space.choice_counts, positions, strict=True)))


def grid_levels(counts: Mapping[str, int], budget: int) -> Levels:
    """How many levels each axis has in the finest grid of at most `budget` points."""
    levels = dict.fromkeys(counts, 1)
    while True:
        room = {
            axis: n for axis, n in counts.items() if math.prod((levels | {axis: levels[axis] + 1}).values()) <= budget
        }
        finer = _finer(levels, room)
        if finer is None:
            return levels
        levels = finer


def _finer(levels: Levels, counts: Mapping[str, int]) -> Levels | None:
    """One level more for the axis with the fewest, of two for the one with more choices; None where none has more."""
    open_axes = [axis for axis, count in counts.items() if levels[axis] < count]
    if not open_axes:
        return None
    axis = min(open_axes, key=lambda name: (levels[name], -counts[name]))
    return levels | {axis: levels[axis] + 1}


def _positions(count: int, levels: int) -> list[int]:
    """`levels` indices below `count` from the first to the last, evenly spaced; one level is the largest choice."""
    if levels == 1:
        return [count - 1]
    return np.linspace(0, count - 1, levels).round().astype(int).tolist()


def _spread(genomes: list[Genome], n: int) -> list[Genome]:
    if len(genomes) <= n:
        return genomes
    return [genomes[i] for i in np.linspace(0, len(genomes) - 1, n).round().astype(int)]
