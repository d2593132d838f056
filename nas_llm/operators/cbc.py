"""UNAST's integer programme (equation 3) by CBC's branch and cut through PuLP: another exact solver, to be installed.

The n * S binary variables are flattened row by row; absent operators are left out. CBC reports no bound: of an answer
that it calls optimal the bound follows from the gap that it was given (a share of the larger of objective and bound),
of any other it is the linear relaxation's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nas_llm.operators.exact import within_limits
from nas_llm.operators.problem import Minimum, Problem

if TYPE_CHECKING:
    import pulp


@dataclass(frozen=True)
class Cbc:
    """`threads` of CBC.

    Raises:
        ValueError: `threads` below 1; when called, PuLP or its CBC is not installed.
    """

    threads: int = 1

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"solver.threads={self.threads}: allowed is 1 or more")

    def __call__(self, problem: Problem, *, gap: float, time_limit_s: float) -> Minimum:
        return within_limits(self._solve, problem, gap, time_limit_s)

    def _solve(self, problem: Problem, gap: float, time_limit_s: float) -> Minimum:
        refuse_without_cbc()
        import pulp

        present = np.flatnonzero(problem.allowed)
        model, variables = _model(problem, present)
        limit = max(time_limit_s, 1.0)  # CBC takes less as no limit at all
        model.solve(pulp.PULP_CBC_CMD(msg=False, gapRel=gap, timeLimit=limit, threads=self.threads))
        if model.status == pulp.LpStatusInfeasible:
            return Minimum(None, -math.inf, "infeasible", "cbc")
        if model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
            return Minimum(None, -math.inf, "unknown", "cbc")
        values = np.full(problem.scores.size, -1.0)
        values[present] = [variable.value() for variable in variables]
        choice = values.reshape(problem.scores.shape).argmax(axis=1)
        if model.sol_status == pulp.LpSolutionOptimal:
            objective = problem.objective(choice)
            bound = objective * (1 - gap) if objective >= 0 else objective / (1 - gap)
            return Minimum(choice, bound, "optimal", "cbc")
        relaxed, _ = _model(problem, present)
        relaxed.solve(pulp.PULP_CBC_CMD(mip=False, msg=False, timeLimit=limit, threads=self.threads))
        bound = pulp.value(relaxed.objective) if relaxed.status == pulp.LpStatusOptimal else -math.inf
        return Minimum(choice, bound, "feasible", "cbc")


def refuse_without_cbc() -> None:
    """Raises ValueError where PuLP or its CBC is not installed."""
    try:
        import pulp
    except ImportError as error:
        raise ValueError(
            "search.solver=cbc needs PuLP, which is not installed: pip install 'pulp<4', or search.solver=milp"
        ) from error
    if not pulp.PULP_CBC_CMD(msg=False).available():
        raise ValueError("search.solver=cbc: this PuLP came without CBC: pip install pulp[cbc], or search.solver=milp")


def _model(problem: Problem, present: np.ndarray) -> tuple[pulp.LpProblem, list[pulp.LpVariable]]:
    import pulp

    model = pulp.LpProblem("programme", pulp.LpMinimize)
    variables = [pulp.LpVariable(f"z{index}", cat=pulp.LpBinary) for index in range(len(present))]
    scores = problem.scores.ravel()[present]
    model += pulp.LpAffineExpression(zip(variables, scores.tolist(), strict=True))
    sublayer = present // problem.scores.shape[1]
    for row in problem.sublayers:
        model += pulp.lpSum(variables[i] for i in np.flatnonzero(sublayer == row)) == 1
    for costs, limit in zip(problem.costs, problem.limits, strict=True):
        model += pulp.LpAffineExpression(zip(variables, costs.ravel()[present].tolist(), strict=True)) <= float(limit)
    for same in problem.same[:, present]:
        model += pulp.lpSum(variables[i] for i in np.flatnonzero(same)) <= problem.overlap
    return model, variables
