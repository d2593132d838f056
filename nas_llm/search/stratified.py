"""Stratified random search: as many random architectures of every parameter bin.

A joint space is skewed towards small networks (paper 1, figure 2a), so that uniform samples leave the bins of large
ones next to empty. Here every bin gets one architecture in turn, so that the counts differ by at most one: drawn from
all of its networks where the space is small enough to be listed, else from the proposal that aims at the bin's size.
Where that finds none that is new, neighbours of those that the bin has are taken; a bin that has none left is closed,
which is said once, and its share goes to the others.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from nas_llm.architecture import Architecture
from nas_llm.parameter_bins import ParameterBins, aimed
from nas_llm.search.genomes import Genome
from nas_llm.search.rounds import RoundSearch

AIMED_TRIES = 50  # of the proposal, for one new network of a bin

logger = logging.getLogger(__name__)


@dataclass
class StratifiedSearch(RoundSearch):
    """Asks for one architecture of every bin in turn, whatever the answers.

    Args:
        space, directions, evaluations, seed: as of every search.
        num_parameters: of an architecture.
        bins: equally wide, from the smallest to the largest number of parameters.

    Raises:
        ValueError: a field is out of its range, or all networks of the space have the same number of parameters.
    """

    name: ClassVar[str] = "stratified"

    num_parameters: Callable[[Architecture], int] = field(kw_only=True)
    bins: int = 20

    def _check(self) -> None:
        super()._check()
        self._refuse_below(bins=1)

    def _restart(self) -> None:
        super()._restart()
        self._bins = ParameterBins.of(
            self.space, self.num_parameters, self.bins, key="search.bins", otherwise="search=random"
        )
        self._asked: list[list[Genome]] = [[] for _ in range(self.bins)]
        self._open = list(range(self.bins))
        self._pools: list[list[Genome]] | None = None

    def _propose(self, wanted: int) -> list[Genome]:
        """One of every open bin, the bins of small networks first."""
        found: list[Genome] = []
        for place in list(self._open):
            if len(found) == wanted:
                break
            genome = self._draw(place)
            if genome is not None:
                self._asked[place].append(genome)
                found.append(genome)
                continue
            self._open.remove(place)
            low, high = self._bins.edges[place : place + 2]
            holds = f"{len(self._asked[place])} networks of {low:,.0f} to {high:,.0f} parameters, and no more"
            logger.info("search.bins=%d: %s", self.bins, holds)
        return found

    def _draw(self, place: int) -> Genome | None:
        """A network of the bin that was never asked for."""
        if self.genomes.enumerable:
            pool = self._listed()[place]
            return pool.pop() if pool else None
        low, high = self._bins.edges[place : place + 2]
        for _ in range(AIMED_TRIES):
            architecture = aimed(self.space, self.num_parameters, low, high, self.genomes.rng)
            if architecture is not None and self._is_new(genome := self.genomes.of(architecture), place):
                return genome
        asked = self.genomes.shuffled(self._asked[place], len(self._asked[place])) + self._ends()
        near = (genome for member in asked for genome in [member, *self.genomes.neighbours(member)])
        return next((genome for genome in near if self._is_new(genome, place)), None)

    def _listed(self) -> list[list[Genome]]:
        """All networks of every bin, in random order."""
        if self._pools is None:
            pools: list[list[Genome]] = [[] for _ in range(self.bins)]
            for genome in self.genomes.every:
                place = self._place(genome)
                assert place is not None
                pools[place].append(genome)
            self._pools = [self.genomes.shuffled(pool, len(pool)) for pool in pools]
        return self._pools

    def _is_new(self, genome: Genome, place: int) -> bool:
        return self._place(genome) == place and genome not in self.genomes.seen

    def _place(self, genome: Genome) -> int | None:
        return self._bins.index(self.num_parameters(self.genomes.architecture(genome)))

    def _ends(self) -> list[Genome]:
        return [self.genomes.of(self.space.smallest()), self.genomes.of(self.space.largest())]
