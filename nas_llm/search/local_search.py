"""Pareto local search (Paquete, Chiarandini & Stützle 2004): the neighbours of the front's members, until none is open.

A network of the current front is drawn, its neighbours (one step of one gene) are measured, and it is closed once all
are known; those that the front takes up are open again. Where the whole front is closed, random networks reopen it.
The front of a search that ends there is a Pareto local optimum set: no neighbour of a member belongs on it. Values have
shape (objectives,), to be minimised; a network whose values are not finite is on no front.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.search.genomes import Genome
from nas_llm.search.rounds import RoundSearch


@dataclass
class LocalSearch(RoundSearch):
    """Starts from the largest, the smallest and the middle network, and `initial`.

    Args:
        space, directions, evaluations, seed: as of every search.
        neighbours: measured at once of the member that was drawn, which stays open while it has others.
        initial: architectures to start from besides.

    Raises:
        ValueError: a field is out of its range, or an initial architecture is not in the space.
    """

    name: ClassVar[str] = "local_search"

    neighbours: int = 16
    initial: Sequence[Architecture] = ()

    def _check(self) -> None:
        super()._check()
        self._refuse_below(neighbours=1)
        self._refuse_outside(self.initial)

    def _restart(self) -> None:
        super()._restart()
        self._front: dict[Genome, np.ndarray] = {}
        self._closed: set[Genome] = set()

    def _propose(self, wanted: int) -> list[Genome]:
        if not self.genomes.seen:
            starts = [self.space.largest(), self.space.smallest(), self.space.middle(), *self.initial]
            return self.genomes.distinct(starts)[:wanted]
        for evaluation in self._answered:
            self._take_up(self.genomes.of(evaluation.architecture))
        n = min(wanted, self.neighbours)
        while members := [genome for genome in self._front if genome not in self._closed]:
            member = members[int(self.genomes.rng.integers(len(members)))]
            near = [genome for genome in self.genomes.neighbours(member) if genome not in self.genomes.seen]
            if near:
                return self.genomes.shuffled(near, n)
            self._closed.add(member)
        return self.genomes.unseen(n)

    def _take_up(self, genome: Genome) -> None:
        """Put it on the front, and off it what it dominates, unless the front does as well."""
        values = self.known[genome]
        if not np.isfinite(values).all() or any((other <= values).all() for other in self._front.values()):
            return
        self._front = {other: row for other, row in self._front.items() if not (values <= row).all()}
        self._front[genome] = values
