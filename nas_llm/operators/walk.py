"""Tabu walks through the choices of UNAST's integer programme: many at once, one sublayer's operator per step.

A walk goes wherever objective plus penalties is least among all exchanges of one operator; penalties are linear in what
is used beyond a budget (weight per constraint) and in how many sublayers too many are shared with each earlier
solution. Weights grow while their constraint is violated and shrink while it holds, so that a walk keeps crossing the
border of what is feasible. A sublayer just changed rests for some steps. A step of P
walks computes arrays of (P, n, S).
"""

from __future__ import annotations

import numpy as np

from nas_llm.operators.problem import TOLERANCE, Problem

GROW, DECAY = 1.1, 0.95
RESTS = 10  # steps at most that a sublayer stays as it is after a change; a third of the sublayers rest at most


def walk(
    problem: Problem,
    starts: np.ndarray,
    *,
    budget_weights: np.ndarray,
    overlap_weight: float,
    steps: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The best feasible choice of every walk.

    Args:
        starts: (P, n).
        budget_weights: (m,) what a unit beyond each limit costs at first.
        overlap_weight: what one shared sublayer too many costs at first.

    Returns:
        Objectives (P,), infinite where a walk met nothing feasible, and choices (P, n).
    """
    walks, n = starts.shape
    operators = problem.scores.shape[1]
    at, every, first = starts.copy(), np.arange(walks), problem.sublayers * operators
    same, of_operator = problem.same, np.ascontiguousarray(problem.same.T)
    scores = problem.scores
    used = problem.costs[:, problem.sublayers, at].sum(axis=-1).T - problem.limits
    shared = of_operator[first + at].sum(axis=1) - problem.overlap
    objective = scores[problem.sublayers, at].sum(axis=1)
    weights = np.tile(budget_weights, (walks, 1))
    overlap_weights = np.full(walks, overlap_weight)
    longest = max(2, min(RESTS, n // 3))
    shortest = max(1, longest // 3)
    rests = np.zeros((walks, n), dtype=np.int64)
    best, found = np.full(walks, np.inf), at.copy()
    for step in range(steps):
        over, crowded = used > TOLERANCE, (shared > 0).any(axis=1)
        better = ~over.any(axis=1) & ~crowded & (objective < best)
        best[better], found[better] = objective[better], at[better]
        change = scores - scores[problem.sublayers, at][..., None]
        for m, costs in enumerate(problem.costs):
            now = used[:, m, None, None]
            after = now + costs - costs[problem.sublayers, at][..., None]
            change += weights[:, m, None, None] * (np.maximum(after, 0) - np.maximum(now, 0))
        if len(same):
            joining = ((shared >= 0).astype(np.float32) @ same).reshape(walks, n, operators)
            leaving = ((shared > 0).astype(np.float32) @ same).reshape(walks, n, operators)
            left = leaving[every[:, None], problem.sublayers, at][..., None]
            change += overlap_weights[:, None, None] * (joining - left)
        change[every[:, None], problem.sublayers, at] = np.inf
        change[rests > step] = np.inf
        sublayer, new = np.divmod(change.reshape(walks, -1).argmin(axis=1), operators)
        moved = np.isfinite(change[every, sublayer, new])
        new = np.where(moved, new, at[every, sublayer])
        old = at[every, sublayer]
        objective += scores[sublayer, new] - scores[sublayer, old]
        used += (problem.costs[:, sublayer, new] - problem.costs[:, sublayer, old]).T
        shared += of_operator[sublayer * operators + new] - of_operator[sublayer * operators + old]
        at[every, sublayer] = new
        rests[every, sublayer] = step + 1 + rng.integers(shortest, longest, walks)
        weights *= np.where(over, GROW, DECAY)
        overlap_weights *= np.where(crowded, GROW, DECAY)
    return best, found
