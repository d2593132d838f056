"""Exchanges of two operators at once, until none lowers the objective of UNAST's integer programme.

A feasible choice at the border of its budget is rarely improved by one exchange; by two (one sublayer pays for another)
it often is. Every step takes the pair that lowers the objective most and keeps all constraints. The N operators of a
problem give at most N^2 pairs per step, so that problems are narrowed first.
"""

from __future__ import annotations

import numpy as np

from nas_llm.operators.problem import TOLERANCE, Problem

ROUNDS = 80
CONSIDERED = 4096  # best pairs of a step whose overlaps are looked at
CHUNK = 512


class Exchange:
    """The arrays of one problem, made once for many choices."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.present = np.flatnonzero(problem.allowed)
        self.rows = self.present // problem.scores.shape[1]
        self.position = np.full(problem.scores.size, -1)
        self.position[self.present] = np.arange(len(self.present))
        self.scores = problem.scores.ravel()[self.present]
        self.costs = problem.costs.reshape(len(problem.limits), problem.scores.size)[:, self.present]
        self.same = problem.same[:, self.present].astype(np.int8)

    def __call__(self, choice: np.ndarray) -> np.ndarray:
        """The choice (n,) that no further exchange improves; `choice` is feasible."""
        operators = self.problem.scores.shape[1]
        at = self.position[self.problem.sublayers * operators + choice]
        for _ in range(ROUNDS):
            pair = self._best_pair(at)
            if pair is None:
                break
            for chosen in pair:
                at[self.rows[chosen]] = chosen
        return self.present[at] % operators

    def _best_pair(self, at: np.ndarray) -> tuple[int, int] | None:
        here = at[self.rows]
        gains, spends = self.scores - self.scores[here], self.costs - self.costs[:, here]
        slack = self.problem.limits + TOLERANCE - self.costs[:, at].sum(axis=1)
        lower = np.flatnonzero(gains < -TOLERANCE)  # one of any two that gain does so by itself
        total = gains[lower][:, None] + gains
        fits = total < -TOLERANCE
        for spend, room in zip(spends, slack, strict=True):
            fits &= spend[lower][:, None] + spend <= room
        fits &= self.rows[lower][:, None] != self.rows
        pairs = np.flatnonzero(fits)
        values = total.ravel()[pairs]
        if len(pairs) > CONSIDERED:
            nearest = np.argpartition(values, CONSIDERED)[:CONSIDERED]
            pairs, values = pairs[nearest], values[nearest]
        pairs = pairs[np.argsort(values, kind="stable")]
        one, other = lower[pairs // len(gains)], pairs % len(gains)
        shared = self.same[:, at].sum(axis=1, dtype=np.int64)
        near = np.flatnonzero(shared > self.problem.overlap - 2)
        differs = self.same[near] - self.same[near][:, here]
        room = (self.problem.overlap - shared[near])[:, None]
        for begin in range(0, len(pairs), CHUNK):
            first, second = one[begin : begin + CHUNK], other[begin : begin + CHUNK]
            good = (differs[:, first] + differs[:, second] <= room).all(axis=0)
            if good.any():
                chosen = int(good.argmax())
                return int(first[chosen]), int(second[chosen])
        return None
