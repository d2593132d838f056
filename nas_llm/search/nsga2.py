"""NSGA-II over the integer genomes of a search space (Deb et al., 2002), by pymoo, as ask and tell.

Non-dominated sorting and crowding distance choose the survivors; offspring come from integer simulated binary crossover
and polynomial mutation. Two genomes are duplicates when they decode to the same architecture, and no architecture is
ever asked for twice, so that the budget counts distinct ones. Genomes have shape (genes,), objectives (n, objectives),
all to be minimised.

Everything is a function of the fields and of the answers, in the order in which the architectures were asked.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.search.archive import Evaluation
from nas_llm.search.pareto import minimised
from nas_llm.search.protocol import Direction
from nas_llm.search_space import SearchSpace

WORST = 1e30  # in every objective, so dominated by all; finite, for pymoo's crowding distance subtracts
ENUMERABLE = 4096  # spaces up to this size are enumerated where mating finds nothing new
TRIES = 1000  # draws of the search space, in larger ones


@dataclass
class NSGA2:
    """NSGA-II. Evaluations whose values are not finite rank behind all others.

    Args:
        space: the search space.
        directions: objective's name -> "min" or "max".
        evaluations: budget, in distinct architectures.
        population: survivors of each generation, and offspring per generation.
        crossover_probability: of each pair of parents.
        crossover_eta: distribution index of the crossover; higher keeps children closer to their parents.
        mutation_probability: of each child; each of its genes then mutates with probability min(1/2, 1/genes).
        mutation_eta: distribution index of the mutation.
        seed: of everything random here.
        initial: architectures of the first population, besides the largest, the smallest and the middle one.

    Raises:
        ValueError: a field is out of its range, or an initial architecture is not in the space.
    """

    name: ClassVar[str] = "nsga2"

    space: SearchSpace
    directions: Mapping[str, Direction]
    evaluations: int = 200
    population: int = 32
    crossover_probability: float = 0.9
    crossover_eta: float = 3.0
    mutation_probability: float = 0.9
    mutation_eta: float = 3.0
    seed: int = 0
    initial: Sequence[Architecture] = ()

    _told: list[Evaluation] = field(default_factory=list, init=False, repr=False)
    _generation: list[Architecture] = field(default_factory=list, init=False, repr=False)
    _answers: dict[str, Evaluation] = field(default_factory=dict, init=False, repr=False)
    _next: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        self._check()
        self._seen: set[tuple[int, ...]] = set()
        self._rng = np.random.default_rng([self.seed, 1])  # pymoo draws from default_rng(seed)
        self._size = self.space.size
        self._start()

    @property
    def exhausted(self) -> bool:
        """Every architecture of the space has been asked for."""
        return len(self._seen) >= self._size

    @property
    def done(self) -> bool:
        spent = len(self._told) >= self.evaluations or (self.exhausted and len(self._told) == len(self._seen))
        return spent and self._next == len(self._generation)

    def ask(self, n: int) -> list[Architecture]:
        """At most `n` architectures of the current generation; empty while answers are outstanding, or when done."""
        if not self.done and len(self._answers) == len(self._generation):
            self._breed()
        asked = self._generation[self._next : self._next + n]
        self._next += len(asked)
        return asked

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        outstanding = {architecture.id for architecture in self._generation[: self._next]} - self._answers.keys()
        for evaluation in evaluations:
            if evaluation.id not in outstanding:
                raise ValueError(
                    f"architecture {evaluation.id} was told but is not outstanding: tell each that was asked once"
                )
            outstanding.remove(evaluation.id)
            self._answers[evaluation.id] = evaluation
            self._told.append(evaluation)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "told": [evaluation.to_dict() for evaluation in self._told]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replays the recorded answers.

        Raises:
            ValueError: they are of a search with another seed, space or budget.
        """
        if state["seed"] != self.seed:
            raise ValueError(f"search.seed={self.seed} differs from {state['seed']} that the search was started with")
        self._told, self._generation, self._answers, self._next = [], [], {}, 0
        self.__post_init__()
        told = {data["id"]: Evaluation.from_dict(data) for data in state["told"]}
        while told:
            asked = self.ask(len(told))
            known = [told.pop(architecture.id) for architecture in asked if architecture.id in told]
            if len(known) < len(asked) or not asked:
                raise ValueError("the recorded evaluations are not those of this search: is the search space the same?")
            self.tell(known)

    def _check(self) -> None:
        whole = {"evaluations": (self.evaluations, 1), "population": (self.population, 2), "seed": (self.seed, 0)}
        for key, (value, low) in whole.items():
            if value < low:
                raise ValueError(f"search.{key}={value} is too small: it must be at least {low}")
        for key in ("crossover_probability", "mutation_probability"):
            if not 0 < getattr(self, key) <= 1:
                raise ValueError(f"search.{key}={getattr(self, key)} is no probability: it must be in (0, 1]")
        for key in ("crossover_eta", "mutation_eta"):
            if not 1 < getattr(self, key) <= 100:
                raise ValueError(f"search.{key}={getattr(self, key)} is out of range: it must be in (1, 100]")
        if not self.directions:
            raise ValueError(
                "objectives=[] leaves the search nothing to compare: name at least one, as objectives=[params,loss]"
            )
        outside = [architecture.id for architecture in self.initial if architecture not in self.space]
        if outside:
            raise ValueError(f"search.initial: architectures {', '.join(outside)} are not in the search space")

    def _start(self) -> None:
        from nas_llm.search.pymoo_nsga2 import build_algorithm

        self._algorithm = build_algorithm(self, self._canonical, self._seen)
        self._population: Any = None  # pymoo's individuals of the current generation

    def _breed(self) -> None:
        """Give pymoo the answers of this generation and take the next, cut to what is left of the budget."""
        from pymoo.core.population import Population

        wanted = min(self.population, self.evaluations - len(self._told))
        if self._population is None:
            genomes = self._first_genomes(wanted)
        else:
            self._algorithm.tell(infills=self._answered())
            offspring = self._algorithm.ask()
            self._algorithm.termination.force_termination = (
                False  # set where mating finds nothing new; others are drawn then
            )
            genomes = [] if offspring is None else [tuple(int(gene) for gene in x) for x in offspring.get("X")][:wanted]
        genomes += self._unseen(wanted - len(genomes), besides=set(genomes))
        self._seen.update(genomes)
        if not genomes:  # the space has fewer points than it says, or hides them too well
            self._size = len(self._seen)
        self._population = Population.new(X=np.array(genomes, dtype=np.int64).reshape(len(genomes), -1))
        self._generation = [self.space.decode(np.array(genome, dtype=np.int64)) for genome in genomes]
        self._answers, self._next = {}, 0

    def _answered(self) -> Any:
        values = minimised([self._answers[architecture.id] for architecture in self._generation], self.directions)
        values[~np.isfinite(values).all(axis=1)] = WORST
        self._population.set("F", values)
        return self._population

    def _first_genomes(self, wanted: int) -> list[tuple[int, ...]]:
        chosen = [self.space.largest(), self.space.smallest(), self.space.middle(), *self.initial]
        return list(dict.fromkeys(self._genome(architecture) for architecture in chosen))[:wanted]

    def _unseen(self, n: int, *, besides: set[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """`n` random genomes that were never asked for, or as many as there are."""
        known, found = self._seen | besides, []
        if n <= 0:
            return []
        if math.prod(self.space.gene_sizes) <= ENUMERABLE:
            every = itertools.product(*(range(size) for size in self.space.gene_sizes))
            rest = sorted({self._canonical(np.array(genome, dtype=np.int64)) for genome in every} - known)
            return [rest[i] for i in self._rng.permutation(len(rest))[:n]]
        for _ in range(TRIES):
            genome = self._genome(self.space.sample(self._rng))
            if genome not in known:
                known.add(genome)
                found.append(genome)
            if len(found) == n:
                break
        return found

    def _genome(self, architecture: Architecture) -> tuple[int, ...]:
        return tuple(int(gene) for gene in self.space.encode(architecture))

    def _canonical(self, genome: np.ndarray) -> tuple[int, ...]:
        """The one genome of the architecture that `genome` decodes to."""
        return self._genome(self.space.decode(genome))
