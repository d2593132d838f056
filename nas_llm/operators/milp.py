"""UNAST's integer programme (equation 3) by HiGHS's branch and cut, as SciPy has it: exact, with a proven bound.

The n * S binary variables are flattened row by row; absent operators are left out. HiGHS works on one thread here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas_llm.operators.exact import within_limits
from nas_llm.operators.problem import Minimum, Problem

TIME_IS_UP, INFEASIBLE = 1, 2  # scipy.optimize.milp's codes


@dataclass(frozen=True)
class Milp:
    """To the gap that is asked for, or as far as the time allows."""

    def __call__(self, problem: Problem, *, gap: float, time_limit_s: float) -> Minimum:
        return within_limits(self._solve, problem, gap, time_limit_s)

    def _solve(self, problem: Problem, gap: float, time_limit_s: float) -> Minimum:
        from scipy import sparse
        from scipy.optimize import Bounds, LinearConstraint, milp

        present = np.flatnonzero(problem.allowed)
        sublayer = present // problem.scores.shape[1]
        each = sparse.csr_matrix((np.ones(len(present)), (sublayer, np.arange(len(present)))))
        rows = [LinearConstraint(each, 1, 1)]
        if len(problem.limits):
            costs = problem.costs.reshape(len(problem.limits), -1)[:, present]
            rows.append(LinearConstraint(costs, -np.inf, problem.limits))
        if len(problem.earlier):
            rows.append(LinearConstraint(sparse.csr_matrix(problem.same[:, present]), -np.inf, problem.overlap))
        options = {"mip_rel_gap": gap, "time_limit": time_limit_s}
        scores = problem.scores.ravel()[present]
        result = milp(scores, constraints=rows, integrality=np.ones(len(present)), bounds=Bounds(0, 1), options=options)
        bound = -np.inf if result.mip_dual_bound is None else float(result.mip_dual_bound)
        if result.x is None:
            return Minimum(None, bound, "infeasible" if result.status == INFEASIBLE else "unknown", "milp")
        values = np.full(problem.scores.size, -1.0)
        values[present] = result.x
        choice = values.reshape(problem.scores.shape).argmax(axis=1)
        return Minimum(choice, bound, "feasible" if result.status == TIME_IS_UP else "optimal", "milp")
