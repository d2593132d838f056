"""The Pareto front: the evaluations that no other one beats in one objective without losing in another.

a dominates b if a is nowhere worse and somewhere better. Values have shape (n, objectives) and are minimised
internally: objectives with the direction "max" are negated.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nas_llm.search.archive import Evaluation
from nas_llm.search.protocol import Direction

LIMITS = {"max_params": "params", "max_latency_ms": "latency", "max_macs": "macs"}  # argument of `pick` -> objective
COSTS = tuple(LIMITS.values())  # what a network costs; other objectives say how well it does


def minimised(evaluations: Sequence[Evaluation], directions: Mapping[str, Direction]) -> np.ndarray:
    """Values to minimise, float64 of shape (n, objectives).

    Raises:
        ValueError: an evaluation lacks one of the objectives, or a direction is neither "min" nor "max".
    """
    signs = np.array([_sign(name, direction) for name, direction in directions.items()])
    for evaluation in evaluations:
        missing = [name for name in directions if name not in evaluation.objectives]
        if missing:
            measured = ", ".join(evaluation.objectives)
            raise ValueError(
                f"objectives={missing} were not measured for architecture {evaluation.id}, only {measured}"
            )
    values = [[evaluation.objectives[name] for name in directions] for evaluation in evaluations]
    return np.asarray(values, dtype=np.float64).reshape(len(values), len(signs)) * signs


def non_dominated(values: np.ndarray) -> np.ndarray:
    """Boolean mask, shape (n,): rows of `values` (n, objectives; to minimise) that no other row dominates.

    Equal rows all stay.
    """
    mask = np.ones(len(values), dtype=bool)
    for i, row in enumerate(values):
        mask[i] = not ((values <= row).all(axis=1) & (values < row).any(axis=1)).any()
    return mask


def pareto_front(evaluations: Iterable[Evaluation], directions: Mapping[str, Direction]) -> list[Evaluation]:
    """The non-dominated evaluations, sorted by the first objective.

    One per architecture and per point in objective space; those with a value that is not finite take no part.
    """
    unique = {evaluation.id: evaluation for evaluation in evaluations}
    candidates, values = _finite(sorted(unique.values(), key=lambda evaluation: evaluation.architecture), directions)
    front = {tuple(values[i]): candidates[i] for i in reversed(np.flatnonzero(non_dominated(values)))}
    return [front[key] for key in sorted(front)]


def hypervolume(
    evaluations: Sequence[Evaluation], directions: Mapping[str, Direction], reference: Mapping[str, float]
) -> float:
    """Volume dominated by `evaluations` and bounded by the point `reference`, in the product of the objectives'
    units.
    """
    from pymoo.indicators.hv import HV

    signs = np.array([_sign(name, direction) for name, direction in directions.items()])
    point = np.array([reference[name] for name in directions], dtype=np.float64) * signs
    _, values = _finite(evaluations, directions)
    values = values[(values <= point).all(axis=1)]
    return float(HV(ref_point=point)(values)) if len(values) else 0.0


@dataclass(frozen=True)
class Front:
    """A Pareto front that can be asked for "the best sub-network of at most N".

    `full` is the whole network's evaluation.
    """

    evaluations: tuple[Evaluation, ...]
    directions: Mapping[str, Direction]
    full: Evaluation | None = field(default=None)

    @classmethod
    def of(
        cls, evaluations: Iterable[Evaluation], directions: Mapping[str, Direction], full: Evaluation | None = None
    ) -> "Front":
        """The front of everything measured.

        Raises:
            ValueError: no evaluation has only finite values.
        """
        front = tuple(pareto_front(evaluations, directions))
        if not front:
            raise ValueError(
                f"no architecture has finite values of {', '.join(directions)}: is the super-network trained?"
            )
        return cls(front, dict(directions), full)

    def __len__(self) -> int:
        return len(self.evaluations)

    def pick(
        self,
        *,
        max_params: float | None = None,
        max_latency_ms: float | None = None,
        max_macs: float | None = None,
        minimise: str | None = None,
    ) -> Evaluation:
        """The best sub-network on the front within the limits.

        Args:
            max_params: parameters; a value of at most 1 is a fraction of the full network's.
            max_latency_ms: milliseconds, as the `latency` objective measured them.
            max_macs: multiply-accumulates, as the `macs` objective counted them.
            minimise: the objective that decides; by default the first that is no cost (loss, perplexity, ...). An
                objective that is to be maximised is maximised.

        Raises:
            ValueError: nothing fits (the smallest available is named), a limit is on something that was not measured,
                or `minimise` is unknown.
        """
        given = {"max_params": max_params, "max_latency_ms": max_latency_ms, "max_macs": max_macs}
        limits = {key: self._limit(key, value) for key, value in given.items() if value is not None}
        by = self._deciding(minimise)
        fitting = list(self.evaluations)
        for key, limit in limits.items():
            objective = LIMITS[key]
            smallest = min(evaluation.objectives[objective] for evaluation in fitting)
            fitting = [evaluation for evaluation in fitting if evaluation.objectives[objective] <= limit]
            if not fitting:
                raise ValueError(self._nothing_fits(key, given[key], limit, smallest))
        sign = _sign(by, self.directions.get(by, "min"))
        return min(fitting, key=lambda evaluation: (sign * evaluation.objectives[by], evaluation.architecture))

    def _limit(self, key: str, value: float) -> float:
        objective = LIMITS[key]
        if not value > 0 or math.isinf(value):
            raise ValueError(f"{key}={value} is not a limit: give a number above 0")
        if objective not in self._measured:
            known = ", ".join(self._measured)
            raise ValueError(f"{key}={value} needs the objective {objective}, which was not measured (only {known})")
        if objective != "params" or value > 1:
            return value
        if self.full is None:
            raise ValueError(f"max_params={value} is a fraction of the full network, whose size is not in the archive")
        return value * self.full.objectives["params"]

    @property
    def _measured(self) -> list[str]:
        """Objectives that every network of the front has."""
        names = self.evaluations[0].objectives
        return [name for name in names if all(name in evaluation.objectives for evaluation in self.evaluations)]

    def _deciding(self, minimise: str | None) -> str:
        if minimise is None:
            return next((name for name in self.directions if name not in COSTS), next(iter(self.directions)))
        if minimise not in self._measured:
            raise ValueError(f"minimise={minimise} was not measured; allowed are {', '.join(self._measured)}")
        return minimise

    def _nothing_fits(self, key: str, given: float | None, limit: float, smallest: float) -> str:
        fraction = ""
        if key == "max_params" and self.full is not None:
            fraction = f" ({smallest / self.full.objectives['params']:.4f} of the full network)"
        meaning = "" if given == limit else f" (= {limit:,.0f})"
        return f"{key}={given}{meaning}: nothing on the front is that small; the smallest has {smallest:,.6g}{fraction}"


def _finite(
    evaluations: Sequence[Evaluation], directions: Mapping[str, Direction]
) -> tuple[list[Evaluation], np.ndarray]:
    values = minimised(evaluations, directions)
    finite = np.isfinite(values).all(axis=1)
    return [evaluation for evaluation, keep in zip(evaluations, finite, strict=True) if keep], values[finite]


def _sign(name: str, direction: str) -> float:
    if direction not in ("min", "max"):
        raise ValueError(f"the direction of objective {name} must be min or max, got {direction}")
    return 1.0 if direction == "min" else -1.0
