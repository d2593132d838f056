"""What the searchers share: ask and tell in rounds, a budget of distinct architectures, and continuing by replay.

A round is proposed once all answers to the one before are there, in the order in which they were asked, so that a
searcher is a function of its fields and of the answers, however they arrive. A searcher adds how a round is proposed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.search.archive import Evaluation
from nas_llm.search.genomes import Genome, Genomes
from nas_llm.search.pareto import minimised
from nas_llm.search.protocol import Direction
from nas_llm.search_space import SearchSpace


@dataclass
class RoundSearch:
    """Ask and tell in rounds, each proposed by `_propose`.

    Args:
        space: the search space.
        directions: objective's name -> "min" or "max".
        evaluations: budget, in distinct architectures.
        seed: of everything random.

    Raises:
        ValueError: a field is out of its range.
    """

    name: ClassVar[str]

    space: SearchSpace
    directions: Mapping[str, Direction]
    evaluations: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        self._check()
        if not self.directions:
            raise ValueError(
                "objectives=[] leaves the search nothing to compare: name at least one, as objectives=[params,loss]"
            )
        minimised([], self.directions)
        self._restart()

    @property
    def done(self) -> bool:
        whole = len(self._told) == len(self.genomes.seen) >= self._size
        spent = len(self._told) >= self.evaluations
        return (spent or whole or self._exhausted) and self._next == len(self._round)

    def ask(self, n: int) -> list[Architecture]:
        """At most `n` architectures of the current round; empty while answers are outstanding, or when done."""
        if not self.done and len(self._answers) == len(self._round):
            self._begin()
        asked = self._round[self._next : self._next + n]
        self._next += len(asked)
        return asked

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        outstanding = {architecture.id for architecture in self._round[: self._next]} - self._answers.keys()
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
        self._restart()
        told = {data["id"]: Evaluation.from_dict(data) for data in state["told"]}
        while told:
            asked = self.ask(len(told))
            known = [told.pop(architecture.id) for architecture in asked if architecture.id in told]
            if len(known) < len(asked) or not asked:
                raise ValueError("the recorded evaluations are not those of this search: is the search space the same?")
            self.tell(known)

    # ---------------------------------------------------------------- for searchers

    def _check(self) -> None:
        """Refuse impossible fields; a searcher adds its own."""
        self._refuse_below(evaluations=1, seed=0)

    def _refuse_below(self, **least: int) -> None:
        for key, low in least.items():
            if getattr(self, key) < low:
                raise ValueError(f"search.{key}={getattr(self, key)} is too small: it must be at least {low}")

    def _refuse_outside(self, initial: Sequence[Architecture]) -> None:
        outside = [architecture.id for architecture in initial if architecture not in self.space]
        if outside:
            raise ValueError(f"search.initial: architectures {', '.join(outside)} are not in the search space")

    def _restart(self) -> None:
        """Forget everything; a searcher adds its own state."""
        self.genomes = Genomes(self.space, np.random.default_rng([self.seed, 1]))  # pymoo draws from default_rng(seed)
        self.known: dict[Genome, np.ndarray] = {}  # values to minimise (objectives,), in the order asked
        self._size: int = self.space.size
        self._exhausted: bool = False  # nothing was left to propose
        self._told: list[Evaluation] = []
        self._round: list[Architecture] = []
        self._answers: dict[str, Evaluation] = {}
        self._next: int = 0  # of the round, to be asked

    def _propose(self, wanted: int) -> list[Genome]:
        """At least one and at most `wanted` genomes that are not in `genomes.seen`; none where none are left.

        `known` holds all answers, `_answered` those to the last round.
        """
        raise NotImplementedError

    def _begin(self) -> None:
        self._answered = [self._answers[architecture.id] for architecture in self._round]
        values = minimised(self._answered, self.directions)
        for architecture, row in zip(self._round, values, strict=True):
            self.known[self.genomes.of(architecture)] = row
        genomes = self._propose(self.evaluations - len(self._told))
        self._exhausted = not genomes
        self.genomes.seen.update(genomes)
        self._round = [self.genomes.architecture(genome) for genome in genomes]
        self._answers, self._next = {}, 0
