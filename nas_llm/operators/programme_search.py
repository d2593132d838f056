"""Networks of operators within a budget: an integer programme over the operators' scores (UNAST, paper 3, section 3.3).

    min sum_i a_i . z_i,   z_i one-hot over the operators of sublayer i,   sum_i c_i . z_i <= C for every budget

a_i the scores, c_i a cost; K solutions that share at most a part ``overlap`` of their operators with each other. Layer
errors do not add up, so that the sum is a guess: ``refine`` evaluates so many networks more on the true loss, in an
evolution that the programme's solutions begin, and keeps the overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from nas_llm.operator_network import Operator, OperatorNetwork, Teacher
from nas_llm.operators import Place
from nas_llm.operators.cbc import Cbc, refuse_without_cbc
from nas_llm.operators.cost_table import CostTable
from nas_llm.operators.milp import Milp
from nas_llm.operators.problem import TOLERANCE, relative_gap
from nas_llm.operators.programme import Programme, Solution, solve
from nas_llm.operators.refinement import Evaluated, Refinement

Score = Literal["local", "global_mse", "loss_change"]


@dataclass(frozen=True)
class ProgrammeSearch:
    """``number`` networks for every budget, by the sum of their operators' ``score``.

    Args:
        score: ``local`` (SquareHead of the sublayer's output), ``global_mse`` or ``loss_change`` (of the network's,
            with that operator alone in place).
        overlap: largest part of its operators that a network shares with one found before.
        solver: ``milp`` (scipy's HiGHS) or ``cbc`` (PuLP).
        gap: relative; the first solution is at most so far from the optimum.
        time_limit_s: of all solutions of a budget.
        refine: evaluations of the evolution on the true loss; 0: none.
        seed: of the search for further solutions and of the evolution.

    Raises:
        ValueError: a field out of range, or ``cbc`` is not installed.
    """

    score: Score = "global_mse"
    number: int = 16
    overlap: float = 0.7
    solver: Literal["milp", "cbc"] = "milp"
    gap: float = 0.01
    time_limit_s: float = 60.0
    refine: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.score not in get_args(Score):
            raise ValueError(f"search.score={self.score}: allowed are {', '.join(get_args(Score))}")
        if self.number < 1:
            raise ValueError(f"search.number={self.number}: allowed is 1 or more networks, as search.number=16")
        if not 0 <= self.overlap < 1:
            raise ValueError(
                f"search.overlap={self.overlap}: allowed is a part from 0 to below 1, as search.overlap=0.7"
            )
        if not 0 <= self.gap < 1:
            raise ValueError(f"search.gap={self.gap}: allowed is from 0 to below 1; search.gap=0.01 is one per cent")
        if not self.time_limit_s > 0:
            raise ValueError(
                f"search.time_limit_s={self.time_limit_s}: allowed is more than 0, as search.time_limit_s=60"
            )
        if self.solver not in ("milp", "cbc"):
            raise ValueError(f"search.solver={self.solver}: allowed are milp, cbc")
        if self.solver == "cbc":
            refuse_without_cbc()
        if self.refine < 0:
            raise ValueError(f"search.refine={self.refine}: allowed is 0 or more evaluations, as search.refine=64")

    def __call__(
        self,
        operators: Mapping[Place, Sequence[Operator]],
        scores: Mapping[tuple[Place, Operator], float],
        costs: Mapping[str, CostTable],
        limits: Mapping[str, float],
        num_layers: int,
        loss: Callable[[OperatorNetwork], float],
    ) -> tuple[list[tuple[OperatorNetwork, Solution]], str]:
        """The programme's solutions, the best first, with ``refine`` the best of the evolution; and why they are fewer
        than ``number``, "" if they are not.

        Args:
            operators: candidates, the teacher's among them.
            scores: of each.
            costs: tables that name every key of ``limits``.
            limits: of the sums over places, in each table's unit.
            num_layers: of the teacher.
            loss: of an untrained network, nats per token, which the evolution lowers.

        Raises:
            ValueError: no network is within the limits.
        """
        places = list(operators)
        programme = Programme(
            tuple(tuple(scores[place, operator] for operator in operators[place]) for place in places),
            {
                name: tuple(tuple(costs[name].values[place][o] for o in operators[place]) for place in places)
                for name in limits
            },
            dict(limits),
        )
        rng = np.random.default_rng(self.seed)
        solutions = solve(
            programme,
            number=self.number,
            overlap=self.overlap,
            solver=Cbc() if self.solver == "cbc" else Milp(),
            gap=self.gap,
            time_limit_s=self.time_limit_s,
            rng=rng,
        )

        def network(choice: Sequence[int]) -> OperatorNetwork:
            chosen = {place: operators[place][index] for place, index in zip(places, choice, strict=True)}
            return OperatorNetwork.of(chosen, num_layers)

        found = list(solutions)
        if self.refine:
            found = self._refined(programme, found, lambda choice: loss(network(choice)), rng)
        shortfall = solutions.shortfall
        if len(found) < len(solutions):
            shortfall = (
                f"{len(found)} of {self.number} networks: no more of the {self.refine} that search.refine evaluated "
                f"share at most search.overlap={self.overlap:g} with each of them; a larger overlap may, or more "
                "evaluations"
            )
        return [(network(solution.choice), solution) for solution in found], shortfall

    def _refined(
        self,
        programme: Programme,
        found: Sequence[Solution],
        loss: Callable[[tuple[int, ...]], float],
        rng: np.random.Generator,
    ) -> list[Solution]:
        """The best of the evolution that share as little with better ones as the solutions do, at most as many as were
        found; a gap is against the bound of the best sum of scores."""
        evolution = Refinement(evaluations=self.refine)
        shared = math.floor(self.overlap * len(programme.scores) + TOLERANCE)
        best: list[Evaluated] = []
        for each in evolution(programme, loss, [solution.choice for solution in found], rng=rng):
            alike = (sum(a == b for a, b in zip(each.choice, one.choice, strict=True)) for one in best)
            if len(best) < len(found) and max(alike, default=0) <= shared:
                best.append(each)
        known = {solution.choice: solution for solution in found}
        refined = []
        for each in best:
            objective = programme.objective(each.choice)
            gap = relative_gap(objective, found[0].bound)
            new = Solution(each.choice, objective, found[0].bound, gap, "evolved", 0.0)
            refined.append(known.get(each.choice, new))
        return refined


def teacher_first(operators: Mapping[Place, Sequence[Operator]]) -> dict[Place, tuple[Operator, ...]]:
    """The teacher's own before the others in every place."""
    return {
        place: (Teacher(), *(operator for operator in pool if not isinstance(operator, Teacher)))
        for place, pool in operators.items()
    }
