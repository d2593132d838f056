"""What pymoo needs to be told about genomes: their bounds, rounding, and which of them are duplicates.

Kept apart because importing pymoo takes half a second, which only a search should pay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2 as PymooNSGA2
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM

if TYPE_CHECKING:
    from nas_llm.search.nsga2 import NSGA2

MATING_ROUNDS = 20  # of crossover and mutation, to fill a generation with architectures never seen


class CanonicalGenomes(Repair):
    """Rounds genes, and replaces each genome by the one genome of its architecture."""

    def __init__(self, canonical: Callable[[np.ndarray], tuple[int, ...]]) -> None:
        super().__init__()
        self.canonical = canonical

    def _do(self, problem: Problem, X: np.ndarray, **kwargs: Any) -> np.ndarray:
        return np.array([self.canonical(x) for x in np.around(X).astype(np.int64)]).reshape(X.shape)


class NeverAskedBefore(DuplicateElimination):
    """Drops genomes that were ever asked for, which pymoo's own eliminations forget when an individual dies."""

    def __init__(self, seen: set[tuple[int, ...]]) -> None:
        super().__init__()
        self.seen = seen

    def do(self, pop: Any, *args: Any, return_indices: bool = False, to_itself: bool = True) -> Any:
        known = {tuple(x) for other in args if len(other) for x in other.get("X")}
        keep = []
        for i, x in enumerate(pop.get("X") if len(pop) else []):
            genome = tuple(x)
            if genome not in self.seen and genome not in known:
                known.add(genome)
                keep.append(i)
        return pop[keep]


def build_algorithm(
    search: NSGA2, canonical: Callable[[np.ndarray], tuple[int, ...]], seen: set[tuple[int, ...]]
) -> PymooNSGA2:
    """pymoo's NSGA-II, set up for ask and tell; all it draws comes from `numpy.random.default_rng(search.seed)`."""
    upper = np.array(search.space.gene_sizes, dtype=np.int64) - 1
    problem = Problem(n_var=len(upper), n_obj=len(search.directions), xl=np.zeros_like(upper), xu=upper)
    algorithm = PymooNSGA2(
        pop_size=search.generation_size,
        crossover=SBX(prob=search.crossover_probability, eta=search.crossover_eta),
        mutation=PM(prob=search.mutation_probability, eta=search.mutation_eta),
        repair=CanonicalGenomes(canonical),
        eliminate_duplicates=NeverAskedBefore(seen),
    )
    algorithm.setup(problem, termination=NoTermination(), seed=search.seed)
    algorithm.mating.n_max_iterations = MATING_ROUNDS
    return algorithm
