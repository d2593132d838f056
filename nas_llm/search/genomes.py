"""The genomes of a search space as a searcher keeps them: one per architecture, and never one twice.

Genomes are tuples of indices, one for each gene of the space. Several may decode to one architecture (a dropped layer's
sizes say nothing), so that each is replaced by the one its architecture encodes to.
"""

import itertools
import math
from collections.abc import Container, Iterable

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.search_space import SearchSpace

Genome = tuple[int, ...]

ENUMERABLE = 20_000  # spaces of up to so many genomes are enumerated to find those that are left
TRIES = 1000  # draws of larger ones
REMEMBERED = 128  # networks whose neighbours are kept


class Genomes:
    """Genomes of `space`, which of them were asked for (`seen`), and random ones that were not, drawn with `rng`."""

    def __init__(self, space: SearchSpace, rng: np.random.Generator) -> None:
        self.space, self.rng = space, rng
        self.seen: set[Genome] = set()
        self._every: list[Genome] | None = None
        self._near: dict[Genome, list[Genome]] = {}

    @property
    def enumerable(self) -> bool:
        return math.prod(self.space.gene_sizes) <= ENUMERABLE

    @property
    def every(self) -> list[Genome]:
        """All of an enumerable space, in order."""
        if self._every is None:
            genomes = itertools.product(*(range(size) for size in self.space.gene_sizes))
            self._every = sorted({self.canonical(np.array(genome, dtype=np.int64)) for genome in genomes})
        return self._every

    def of(self, architecture: Architecture) -> Genome:
        return tuple(int(gene) for gene in self.space.encode(architecture))

    def architecture(self, genome: Genome) -> Architecture:
        return self.space.decode(np.array(genome, dtype=np.int64))

    def canonical(self, genome: np.ndarray) -> Genome:
        """The one genome of the architecture that `genome` decodes to."""
        return self.of(self.space.decode(genome))

    def distinct(self, architectures: Iterable[Architecture]) -> list[Genome]:
        """Those never asked for, in their order and each once."""
        found = dict.fromkeys(self.of(architecture) for architecture in architectures)
        return [genome for genome in found if genome not in self.seen]

    def neighbours(self, genome: Genome) -> list[Genome]:
        """One step of one gene away, in the order of the genes."""
        if genome not in self._near:
            if len(self._near) >= REMEMBERED:
                self._near.clear()
            self._near[genome] = [self.of(near) for near in self.space.neighbours(self.architecture(genome))]
        return self._near[genome]

    def shuffled(self, genomes: list[Genome], n: int) -> list[Genome]:
        """`n` of them in random order, or all."""
        return [genomes[i] for i in self.rng.permutation(len(genomes))[:n]]

    def unseen(self, n: int, *, besides: Container[Genome] = ()) -> list[Genome]:
        """`n` random ones that were never asked for, or as many as there are.

        Uniform over the architectures of an enumerable space, and over the choices of every axis of a larger one, as
        long as a thousand draws find them; then next to those that were asked for.
        """
        if n <= 0:
            return []
        if self.enumerable:
            return self.shuffled([g for g in self.every if g not in self.seen and g not in besides], n)
        found: dict[Genome, None] = {}
        for _ in range(TRIES):
            genome = self.of(self.space.sample(self.rng))
            if genome not in self.seen and genome not in besides:
                found[genome] = None
            if len(found) == n:
                return list(found)
        for genome in self.shuffled(sorted(self.seen), len(self.seen)):
            near = (g for g in self.neighbours(genome) if g not in self.seen and g not in besides)
            found.update(dict.fromkeys(near))
            if len(found) >= n:
                break
        return list(found)[:n]
