"""NSGA-II over the integer genomes of a search space (Deb et al., 2002), by pymoo, as ask and tell.

Non-dominated sorting and crowding distance choose the survivors; offspring come from integer simulated binary crossover
and polynomial mutation. Two genomes are duplicates when they decode to the same architecture, and no architecture is
ever asked for twice, so that the budget counts distinct ones. Genomes have shape (genes,), objectives (n, objectives),
all to be minimised.

Everything is a function of the fields and of the answers, in the order in which the architectures were asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.search.genomes import Genome
from nas_llm.search.pareto import minimised
from nas_llm.search.rounds import RoundSearch

WORST = 1e30  # in every objective, so dominated by all; finite, for pymoo's crowding distance subtracts
LARGEST_POPULATION, SMALLEST_POPULATION, GENERATIONS = 32, 4, 10  # where none is given: a tenth of the budget


@dataclass
class NSGA2(RoundSearch):
    """NSGA-II. Evaluations whose values are not finite rank behind all others.

    Args:
        space, directions, evaluations, seed: as of every search.
        population: survivors of each generation, and offspring per generation; None is a tenth of the budget, 4 to 32.
        crossover_probability: of each pair of parents.
        crossover_eta: distribution index of the crossover; higher keeps children closer to their parents.
        mutation_probability: of each child; each of its genes then mutates with probability min(1/2, 1/genes).
        mutation_eta: distribution index of the mutation.
        initial: architectures of the first population, besides the largest, the smallest and the middle one.

    Raises:
        ValueError: a field is out of its range, or an initial architecture is not in the space.
    """

    name: ClassVar[str] = "nsga2"

    population: int | None = None
    crossover_probability: float = 0.9
    crossover_eta: float = 3.0
    mutation_probability: float = 0.9
    mutation_eta: float = 3.0
    initial: Sequence[Architecture] = ()

    @property
    def generation_size(self) -> int:
        """`population`, or what its absence stands for."""
        share = max(SMALLEST_POPULATION, min(LARGEST_POPULATION, self.evaluations // GENERATIONS))
        return share if self.population is None else self.population

    def _check(self) -> None:
        super()._check()
        if self.population is not None:
            self._refuse_below(population=2)
        for key in ("crossover_probability", "mutation_probability"):
            if not 0 < getattr(self, key) <= 1:
                raise ValueError(f"search.{key}={getattr(self, key)} is no probability: it must be in (0, 1]")
        for key in ("crossover_eta", "mutation_eta"):
            if not 1 < getattr(self, key) <= 100:
                raise ValueError(f"search.{key}={getattr(self, key)} is out of range: it must be in (1, 100]")
        self._refuse_outside(self.initial)

    def _restart(self) -> None:
        from nas_llm.search.pymoo_nsga2 import build_algorithm

        super()._restart()
        self._algorithm = build_algorithm(self, self.genomes.canonical, self.genomes.seen)
        self._population: Any = None  # pymoo's individuals of the current generation

    def _propose(self, wanted: int) -> list[Genome]:
        """Give pymoo the answers of this generation and take the next, cut to what is left of the budget."""
        from pymoo.core.population import Population

        size = min(self.generation_size, wanted)
        if self._population is None:
            genomes = self._first_genomes()[:wanted]  # more than a generation where there are more initial ones
        else:
            self._algorithm.tell(infills=self._with_values())
            offspring = self._algorithm.ask()
            self._algorithm.termination.force_termination = (
                False  # set where mating finds nothing new; others are drawn then
            )
            genomes = [] if offspring is None else [tuple(int(gene) for gene in x) for x in offspring.get("X")][:size]
        genomes += self.genomes.unseen(size - len(genomes), besides=set(genomes))
        self._population = Population.new(X=np.array(genomes, dtype=np.int64).reshape(len(genomes), -1))
        return genomes

    def _with_values(self) -> Any:
        values = minimised(self._answered, self.directions)
        values[~np.isfinite(values).all(axis=1)] = WORST
        self._population.set("F", values)
        return self._population

    def _first_genomes(self) -> list[Genome]:
        chosen = [self.space.largest(), self.space.smallest(), self.space.middle(), *self.initial]
        return self.genomes.distinct(chosen)
