"""The linear relaxation of UNAST's integer programme (SciPy's HiGHS), for its multipliers.

Without z in {0, 1}, the dual values of budgets and overlaps are the multipliers of the best Lagrangian bound, since
each sublayer's part of the relaxation has whole corners (Geoffrion 1974).
"""

from __future__ import annotations

import numpy as np

from nas_llm.operators.problem import Problem


def multipliers(problem: Problem, *, time_limit_s: float) -> np.ndarray | None:
    """(m + k,), not negative: of the budgets, then of the overlaps; None where HiGHS found none in time."""
    from scipy import sparse
    from scipy.optimize import linprog

    kinds = len(problem.limits)
    if kinds + len(problem.earlier) == 0:
        return np.zeros(0)
    present = np.flatnonzero(problem.allowed)
    sublayer = present // problem.scores.shape[1]
    each = sparse.csr_matrix((np.ones(len(present)), (sublayer, np.arange(len(present)))))
    costs = problem.costs.reshape(kinds, problem.scores.size)
    uses = sparse.csr_matrix(np.vstack([costs, problem.same])[:, present])
    limits = np.concatenate([problem.limits, np.full(len(problem.earlier), float(problem.overlap))])
    result = linprog(
        problem.scores.ravel()[present],
        A_ub=uses,
        b_ub=limits,
        A_eq=each,
        b_eq=np.ones(len(problem.sublayers)),
        bounds=(0, None),
        method="highs",
        options={"time_limit": time_limit_s},
    )
    return np.maximum(-result.ineqlin.marginals, 0.0) if result.status == 0 else None
