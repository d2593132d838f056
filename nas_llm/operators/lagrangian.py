"""Lower bounds of UNAST's integer programme by Lagrangian relaxation, and the choices that its steps pass through.

With multipliers w = (lambda, mu) >= 0 on the budgets and on the overlaps, the programme falls apart into sublayers:

    L(w) = sum_i min_o (a_io + sum_m lambda_m c_m,io + sum_j mu_j [z_i^j = o]) - lambda . limits - mu . overlap

which is at most the optimum for every w. Subgradient steps of Polyak's length (target - L) / |g|^2, shrunk whenever
they do not help, raise it; g is what the minimising choice uses beyond each constraint. (Held, Wolfe and Crowder 1974.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas_llm.operators.problem import Problem

PATIENCE = 15  # steps without a better bound before they shrink
SHRINK = 0.6
SMALLEST = 1e-3  # share of Polyak's length below which the steps end
ROUNDING = 1e-9


@dataclass(frozen=True)
class Relaxation:
    """`multipliers` (m + k,) of the best bound; `choices` (steps, n), those that violate constraints least first."""

    bound: float
    multipliers: np.ndarray
    choices: np.ndarray


def relax(problem: Problem, *, multipliers: np.ndarray, target: float, steps: int) -> Relaxation:
    """The best bound of `steps` steps from `multipliers` (m + k,); `target` is a guess of the optimum."""
    n, operators = problem.scores.shape
    kinds = len(problem.limits)
    uses = np.vstack([problem.costs.reshape(kinds, problem.scores.size), problem.same])
    of_operator = np.ascontiguousarray(uses.T)
    limits = np.concatenate([problem.limits, np.full(len(problem.earlier), float(problem.overlap))])
    start, scores = problem.sublayers * operators, problem.scores.ravel()
    best, best_w, w = -np.inf, multipliers, multipliers
    scale, idle = 1.0, 0
    choices, violations = [], []
    unit = np.concatenate([np.full(kinds, float(n)), np.ones(len(problem.earlier))])
    for _ in range(steps):
        reduced = (scores + of_operator @ w).reshape(n, operators)
        choice = reduced.argmin(axis=1)
        value = float(reduced[problem.sublayers, choice].sum() - w @ limits)
        beyond = of_operator[start + choice].sum(axis=0) - limits
        choices.append(choice)
        violations.append(float(unit @ np.maximum(beyond, 0)))
        if value > best + ROUNDING:
            best, best_w, idle = value, w, 0
        else:
            idle += 1
            if idle >= PATIENCE:
                scale, idle, w = SHRINK * scale, 0, best_w
        step = np.where((w <= 0) & (beyond < 0), 0.0, beyond)
        length = float(step @ step)
        if length < ROUNDING**2 or scale < SMALLEST:
            break
        w = np.maximum(w + scale * max(target - value, ROUNDING) / length * step, 0)
    ordered = np.array(choices)[np.argsort(violations, kind="stable")]
    return Relaxation(best - ROUNDING * max(1.0, abs(best)), best_w, ordered)


def reduced_costs(problem: Problem, multipliers: np.ndarray) -> np.ndarray:
    """(n, S): how much more each operator's term of L is than its sublayer's smallest."""
    kinds = len(problem.limits)
    terms = problem.scores + np.tensordot(multipliers[:kinds], problem.costs, axes=1)
    terms = terms + (multipliers[kinds:] @ problem.same).reshape(terms.shape)
    return terms - terms.min(axis=1, keepdims=True)
