"""UNAST's integer programme (equation 3) by HiGHS's branch and cut, as SciPy has it: exact, with a proven bound.

The n * S binary variables are flattened row by row; absent operators are left out. HiGHS works on one thread here, and
keeps constraints to 1e-6 only: where an answer oversteps a limit by more than rounding, it is sought again under a
limit that is tighter by twice that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from nas_llm.operators.problem import Minimum, Problem

FEASIBILITY = 1e-6  # HiGHS's own tolerance of a constraint
TIME_IS_UP, INFEASIBLE = 1, 2  # scipy.optimize.milp's codes


@dataclass(frozen=True)
class Milp:
    """To the gap that is asked for, or as far as the time allows."""

    def __call__(self, problem: Problem, *, gap: float, time_limit_s: float) -> Minimum:
        start = time.perf_counter()
        found = self._solve(problem, gap, time_limit_s)
        if found.choice is None or problem.is_feasible(found.choice):
            return found
        tighter = replace(problem, limits=problem.limits - 2 * FEASIBILITY)
        again = self._solve(tighter, gap, max(time_limit_s - (time.perf_counter() - start), 0.1))
        if again.choice is None or not problem.is_feasible(again.choice):
            return Minimum(None, found.bound, "unknown", "milp")
        return replace(again, bound=found.bound)

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
