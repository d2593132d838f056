"""Hill climbing from the heuristic sub-network, once for every weighting of the objectives.

A climb goes from the middle network to better and better neighbours (one step of one gene), until none is better. What
is better is told by the augmented Chebyshev function of ParEGO (Knowles 2006, equation 2), to be minimised:

    f(x) = max_j w_j z_j + rho * sum_j w_j z_j,        z = (values - best) / (worst - best), each over all known,

rho = 0.05; its optima are the front, where a weighted sum misses the concave parts. Weights are equal in the first
climb and drawn uniformly from the simplex for every further one; what earlier climbs have measured costs nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.search.genomes import Genome
from nas_llm.search.rounds import RoundSearch

RHO = 0.05
IDLE_CLIMBS = 8  # in a row along networks that are all known, before a random network is climbed from


@dataclass
class HillClimbing(RoundSearch):
    """Climbs from the middle network and `initial` in turn; the largest and the smallest one give the first scales.

    Args:
        space, directions, evaluations, seed: as of every search.
        neighbours: measured at once; the climb moves on as soon as one of them is better.
        initial: architectures to climb from besides the middle one.

    Raises:
        ValueError: a field is out of its range, or an initial architecture is not in the space.
    """

    name: ClassVar[str] = "hill_climbing"

    neighbours: int = 16
    initial: Sequence[Architecture] = ()

    def _check(self) -> None:
        super()._check()
        self._refuse_below(neighbours=1)
        self._refuse_outside(self.initial)

    def _restart(self) -> None:
        super()._restart()
        chosen = [self.space.middle(), *self.initial]
        self._starts = list(dict.fromkeys(self.genomes.of(architecture) for architecture in chosen))
        self._fresh: list[Genome] = []  # a random network to climb from next
        self._climbs = 0

    def _propose(self, wanted: int) -> list[Genome]:
        n = min(wanted, self.neighbours)
        if not self.genomes.seen:
            ends = [self.space.largest(), self.space.smallest()]
            return self.genomes.distinct([self.space.middle(), *ends, *self.initial])[:wanted]
        if self._climbs == 0 or self._fresh:
            self._begin_climb()
        for _ in range(IDLE_CLIMBS):
            near = self._climb()
            if near:
                return self.genomes.shuffled(near, n)
            self._begin_climb()
        self._fresh = self.genomes.unseen(1)
        return list(self._fresh)

    def _begin_climb(self) -> None:
        """Scales of what is known now, other weights, and the next start."""
        values = np.array([row for row in self.known.values() if np.isfinite(row).all()])
        if len(values) == 0:
            values = np.zeros((1, len(self.directions)))
        self._best = values.min(axis=0)
        spread = values.max(axis=0) - self._best
        self._spread = np.where(spread > 0, spread, 1.0)
        equal = np.full(len(self.directions), 1 / len(self.directions))
        self._weights = self.genomes.rng.dirichlet(np.ones(len(equal))) if self._climbs else equal
        self._at = self._fresh.pop() if self._fresh else self._starts[self._climbs % len(self._starts)]
        self._climbs += 1

    def _climb(self) -> list[Genome]:
        """Go where a known neighbour is better; the unknown neighbours of the network where none is."""
        while True:
            near = self.genomes.neighbours(self._at)
            known = [genome for genome in near if genome in self.known]
            best = min(known, key=lambda genome: (self._height(genome), genome), default=self._at)
            if self._height(best) >= self._height(self._at):
                return [genome for genome in near if genome not in self.genomes.seen]
            self._at = best

    def _height(self, genome: Genome) -> float:
        values = self.known[genome]
        if not np.isfinite(values).all():
            return math.inf
        weighted = self._weights * (values - self._best) / self._spread
        return float(weighted.max() + RHO * weighted.sum())
