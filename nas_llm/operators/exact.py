"""Answers of exact solvers held to the limits: a solver keeps constraints to its own tolerance only, so an answer that
oversteps one by more than rounding is sought again under limits that are tighter by twice that."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from nas_llm.operators.problem import Minimum, Problem

Solve = Callable[[Problem, float, float], Minimum]
"""(problem, gap, seconds at most)."""
FEASIBILITY = 1e-6  # the tolerance of a constraint of HiGHS and of CBC
_LEAST_S = 1.0  # of a second attempt


def within_limits(solve: Solve, problem: Problem, gap: float, time_limit_s: float) -> Minimum:
    """The solver's answer if it keeps the limits, or that of a second attempt; "unknown" where that fails too."""
    start = time.perf_counter()
    found = solve(problem, gap, time_limit_s)
    if found.choice is None or problem.is_feasible(found.choice):
        return found
    tighter = replace(problem, limits=problem.limits - 2 * FEASIBILITY)
    again = solve(tighter, gap, max(time_limit_s - (time.perf_counter() - start), _LEAST_S))
    if again.choice is None or not problem.is_feasible(again.choice):
        return Minimum(None, found.bound, "unknown", found.method)
    return replace(again, bound=found.bound)
