"""Hypervolume over the evaluations of a search: how much of a fixed box its front dominates, after each answer.

The box is made of the largest, the middle and the smallest network of the space, which are measured beside every
search, so that all searches of one super-network and one space share it. In each objective, z = 0 at the best of their
values and z = 1 at the reference, the worst of them and a tenth of the spread beyond:

    hypervolume = volume of the union of [z(x), 1] over all x that were measured,         z <= 1 in every objective

(Zitzler & Thiele 1999). It can exceed 1 where a network is better than the best of the three.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas_llm.search.archive import Evaluation
from nas_llm.search.protocol import Direction

MARGIN = 0.1


@dataclass(frozen=True)
class Box:
    """`ideal` and `reference` values of every objective, in its unit."""

    ideal: Mapping[str, float]
    reference: Mapping[str, float]

    @classmethod
    def of(cls, evaluations: Sequence[Evaluation], directions: Mapping[str, Direction]) -> "Box | None":
        """Around the finite values of these; None where an objective has none."""
        ideal, reference = {}, {}
        for name, direction in directions.items():
            values = [e.objectives[name] for e in evaluations if math.isfinite(e.objectives[name])]
            if not values:
                return None
            best, worst = (min(values), max(values)) if direction == "min" else (max(values), min(values))
            spread = worst - best or (1.0 if direction == "min" else -1.0) * (abs(worst) or 1.0)
            ideal[name], reference[name] = best, worst + MARGIN * spread
        return cls(ideal, reference)

    def __call__(self, evaluation: Evaluation) -> np.ndarray:
        """z of shape (objectives,), to be minimised."""
        return np.array(
            [(evaluation.objectives[name] - best) / (self.reference[name] - best) for name, best in self.ideal.items()]
        )


class HypervolumeCurve:
    """Grows with every evaluation; two objectives cost O(log n) each, more of them the front's hypervolume.

    `rises` lists (evaluations, hypervolume) after the first evaluation and wherever the value rose.
    """

    def __init__(self, box: Box) -> None:
        self.box = box
        self.evaluations = 0
        self.value = 0.0
        self.rises: list[tuple[int, float]] = []
        self._front: list[tuple[float, ...]] = []  # z of what is not dominated, sorted

    def add(self, evaluation: Evaluation) -> float:
        """The hypervolume with this evaluation; one that is not finite, or beyond the reference, adds nothing."""
        self.evaluations += 1
        point = tuple(self.box(evaluation).tolist())
        before = self.value
        if all(z < 1 for z in point):  # not so where one is not a number
            self._take_up(point)
        if self.value > before or not self.rises:
            self.rises.append((self.evaluations, self.value))
        return self.value

    def _take_up(self, point: tuple[float, ...]) -> None:
        if len(point) == 2:
            self._insert(*point)
        elif not any(_covers(other, point) for other in self._front):
            self._front = [other for other in self._front if not _covers(point, other)] + [point]
            self.value = _volume(np.array(self._front))

    def _insert(self, x: float, y: float) -> None:
        """Into the staircase of two objectives, whose second falls as the first grows; adds the new corner's area."""
        start = bisect_left(self._front, (x, y))
        ceiling = self._front[start - 1][1] if start else 1.0
        if ceiling <= y:
            return
        end, left = start, x
        while end < len(self._front) and self._front[end][1] >= y:
            self.value += (self._front[end][0] - left) * (ceiling - y)
            left, ceiling = self._front[end]
            end += 1
        right = self._front[end][0] if end < len(self._front) else 1.0
        self.value += (right - left) * (ceiling - y)
        self._front[start:end] = [(x, y)]


def _covers(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True))


def _volume(front: np.ndarray) -> float:
    if front.shape[1] == 1:
        return float(1 - front.min())
    from pymoo.indicators.hv import HV

    return float(HV(ref_point=np.ones(front.shape[1]))(front))
