"""Evolution from the integer programme's solutions, on the true loss, under the same budgets.

The programme adds the layers' errors up, which real networks do not. Here the loss of whole architectures decides:
parents are the best of all that were evaluated, drawn by tournaments of two; a child takes every sublayer from either
parent, changes a few at random, and gives up what it uses beyond a budget where the scores say that this costs least.
No choice is evaluated twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nas_llm.operators.problem import TOLERANCE, Problem
from nas_llm.operators.programme import Programme

Choice = tuple[int, ...]
IDLE = 200  # children in a row that were all evaluated before: the search ends
NOISE = 0.3  # of what a repair thinks a change costs, in natural logarithms, so that repairs differ


@dataclass(frozen=True)
class Evaluated:
    """One operator per sublayer, and its true loss: infinite where the loss was not a number."""

    choice: Choice
    loss: float


@dataclass(frozen=True)
class Refinement:
    """`evaluations` of the loss, the starts' too; `population` parents; `changes` sublayers of a child on average.

    Raises:
        ValueError: a number out of its range.
    """

    evaluations: int = 200
    population: int = 16
    changes: float = 2.0

    def __post_init__(self) -> None:
        for name in ("evaluations", "population"):
            if getattr(self, name) < 1:
                raise ValueError(f"refinement.{name}={getattr(self, name)}: allowed is 1 or more")
        if not self.changes > 0:
            raise ValueError(f"refinement.changes={self.changes}: allowed is more than 0")

    def __call__(
        self,
        programme: Programme,
        loss: Callable[[Choice], float],
        starts: Sequence[Choice],
        *,
        rng: np.random.Generator,
        tell: Callable[[Evaluated], None] | None = None,
    ) -> list[Evaluated]:
        """Every choice that was evaluated, the best first.

        Args:
            programme: budgets, and the scores by which children are repaired.
            loss: of one operator per sublayer; lower is better.
            starts: the programme's solutions, the best first; as many as there are evaluations are evaluated.
            tell: called with each evaluation as it is made.

        Raises:
            ValueError: no start, or one that names an operator that there is not, or that breaks a budget.
        """
        problem = programme.problem(shared=len(programme.scores))
        _refuse(programme, problem, starts)
        known: dict[Choice, Evaluated] = {}

        def evaluate(choice: Choice) -> None:
            value = float(loss(choice))
            known[choice] = Evaluated(choice, math.inf if math.isnan(value) else value)
            if tell is not None:
                tell(known[choice])

        for start in dict.fromkeys(tuple(int(operator) for operator in start) for start in starts):
            if len(known) < self.evaluations:
                evaluate(start)
        idle = 0
        while len(known) < self.evaluations and idle < IDLE:
            parents = _ranked(known)[: self.population]
            child = _repaired(problem, self._child(problem, parents, rng), rng)
            if child is None or child in known:
                idle += 1
                continue
            idle = 0
            evaluate(child)
        return _ranked(known)

    def _child(self, problem: Problem, parents: list[Evaluated], rng: np.random.Generator) -> np.ndarray:
        one, other = (min(rng.integers(len(parents), size=2)) for _ in range(2))
        n = len(problem.sublayers)
        child = np.where(rng.random(n) < 0.5, parents[one].choice, parents[other].choice)
        changed = rng.random(n) < self.changes / n
        changed[rng.integers(n)] = True
        return np.where(changed, rng.integers(0, problem.allowed.sum(axis=1)), child)


def _ranked(known: dict[Choice, Evaluated]) -> list[Evaluated]:
    return sorted(known.values(), key=lambda one: (one.loss, one.choice))


def _repaired(problem: Problem, choice: np.ndarray, rng: np.random.Generator) -> Choice | None:
    """By exchanges of the least score per unit that they take off the overstepped budgets; None where none does."""
    at = choice.copy()
    noise = np.exp(NOISE * rng.standard_normal(problem.scores.shape))
    while True:
        beyond = problem.used(at) - problem.limits
        if (beyond <= TOLERANCE).all():
            return tuple(int(operator) for operator in at)
        after = beyond[:, None, None] + problem.costs - problem.costs[:, problem.sublayers, at][..., None]
        taken = np.maximum(beyond, 0).sum() - np.maximum(after, 0).sum(axis=0)
        worse = problem.scores - problem.scores[problem.sublayers, at][:, None]
        helps = (taken > TOLERANCE) & problem.allowed
        if not helps.any():
            return None
        price = np.where(helps, worse * np.where(worse > 0, noise, 1.0), np.inf) / np.where(helps, taken, 1.0)
        sublayer, operator = divmod(int(price.argmin()), problem.scores.shape[1])
        at[sublayer] = operator


def _refuse(programme: Programme, problem: Problem, starts: Sequence[Choice]) -> None:
    if not starts:
        raise ValueError("starts=[]: allowed is one choice or more, such as the integer programme's solutions")
    for start in starts:
        if len(start) != len(programme.scores):
            raise ValueError(f"a start of {len(start)} sublayers: allowed is {len(programme.scores)}, as in the scores")
        for sublayer, (operator, scores) in enumerate(zip(start, programme.scores, strict=True)):
            if not 0 <= operator < len(scores):
                raise ValueError(
                    f"a start has operator {operator} in sublayer {sublayer}: allowed is from 0 to {len(scores) - 1}"
                )
        if not problem.is_feasible(np.array(start)):
            used = programme.used(start)
            over = ", ".join(f"{name} {used[name]:g} of {budget:g}" for name, budget in programme.budgets.items())
            raise ValueError(f"a start breaks a budget ({over}): solve the programme under these budgets again")
