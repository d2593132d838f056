"""One integer programme as arrays: UNAST's equation 3 with equation 4's overlap constraints of the solutions before.

    min sum_i a_i . z_i    subject to    sum_i c_m,i . z_i <= limit_m,    sum_i z_i . z_i^j <= overlap,    z_i one-hot.

n sublayers, up to S operators each, m constraints, k earlier solutions. A choice is the vector of the n operators'
indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

TOLERANCE = 1e-9  # of a constraint, relative to the largest sum that it bounds


@dataclass(frozen=True)
class Problem:
    """Costs of each constraint are divided by the largest sum they reach, so that all constraints are alike.

    Args:
        scores: (n, S), infinite where a sublayer has no such operator; lower is better.
        costs: (m, n, S), finite everywhere.
        limits: (m,).
        earlier: (k, n) operators of the solutions before; -1 where the problem does not know that operator.
        overlap: how many sublayers may be as in any one of them.
    """

    scores: np.ndarray
    costs: np.ndarray
    limits: np.ndarray
    earlier: np.ndarray
    overlap: int

    @cached_property
    def sublayers(self) -> np.ndarray:
        """(n,): 0, 1, ..., to index with."""
        return np.arange(len(self.scores))

    @cached_property
    def allowed(self) -> np.ndarray:
        """(n, S): which operators there are."""
        return np.isfinite(self.scores)

    @cached_property
    def same(self) -> np.ndarray:
        """(k, n * S) float32: 1 where an operator is the earlier solution's."""
        hit = self.earlier[:, :, None] == np.arange(self.scores.shape[1])
        return hit.reshape(len(self.earlier), self.scores.size).astype(np.float32)

    @property
    def size(self) -> int:
        """Variables times constraints."""
        return int(self.allowed.sum()) * (len(self.limits) + len(self.earlier) + 1)

    @property
    def spread(self) -> float:
        """What exchanging one operator changes the objective by at most, a mean over the sublayers."""
        finite = np.where(self.allowed, self.scores, np.nan)
        return float(np.mean(np.nanmax(finite, axis=1) - np.nanmin(finite, axis=1)))

    def objective(self, choice: np.ndarray) -> float:
        return float(self.scores[self.sublayers, choice].sum())

    def used(self, choice: np.ndarray) -> np.ndarray:
        """(m,) of the limits."""
        return self.costs[:, self.sublayers, choice].sum(axis=1)

    def shared(self, choice: np.ndarray) -> np.ndarray:
        """(k,) numbers of sublayers that are as in each earlier solution."""
        return (self.earlier == choice).sum(axis=1)

    def is_feasible(self, choice: np.ndarray) -> bool:
        within = (self.used(choice) <= self.limits + TOLERANCE).all()
        return bool(within and (self.shared(choice) <= self.overlap).all())

    def after(self, choices: Sequence[np.ndarray]) -> Problem:
        """The problem of the next solution."""
        earlier = np.array(choices, dtype=np.int64).reshape(len(choices), len(self.scores))
        return Problem(self.scores, self.costs, self.limits, earlier, self.overlap)

    def narrowed(self, order: np.ndarray, kept: np.ndarray) -> Problem:
        """Of the operators `order` (n, S') alone, those of which that are not `kept` (n, S') left out as well."""
        scores = np.where(kept, np.take_along_axis(self.scores, order, axis=1), np.inf)
        costs = np.take_along_axis(self.costs, order[None], axis=2)
        found = (order[None] == self.earlier[:, :, None]) & kept
        earlier = np.where(found.any(axis=2), found.argmax(axis=2), -1)
        return Problem(scores, costs, self.limits, earlier, self.overlap)


@dataclass(frozen=True)
class Minimum:
    """What a method says of a problem.

    `status` is "optimal" (the objective is within the gap that was asked for of `bound`), "feasible", "infeasible" (no
    choice satisfies the constraints: proven) or "unknown" (none was found). `bound` is a proven lower bound of the
    optimum.
    """

    choice: np.ndarray | None
    bound: float
    status: str
    method: str


class Solver(Protocol):
    """Solves one problem to a relative gap, or as far as the time allows."""

    def __call__(self, problem: Problem, *, gap: float, time_limit_s: float) -> Minimum: ...


def relative_gap(objective: float, bound: float) -> float:
    """(objective - bound) / abs(bound); infinite above a bound of 0."""
    above = max(objective - bound, 0.0)
    if above <= TOLERANCE * max(1.0, abs(objective)):
        return 0.0
    return above / abs(bound) if bound else float("inf")
