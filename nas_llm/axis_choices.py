"""The choices of one axis of a search space: equally spaced defaults, and the refusal of impossible ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AxisGrid:
    """Equally spaced default choices of an axis."""

    min_fraction: float
    steps: int
    multiple_of: int

    def __post_init__(self) -> None:
        if not 0 < self.min_fraction <= 1:
            raise ValueError(f"search_space.min_fraction={self.min_fraction}: allowed is above 0 and at most 1")
        for key, value in (("steps", self.steps), ("multiple_of", self.multiple_of)):
            if value < 1:
                raise ValueError(f"search_space.{key}={value}: allowed is at least 1")

    def choices(self, full: int, multiple_of: int) -> list[int]:
        """Ascending sizes in multiples of ``multiple_of``; the last is ``full`` itself."""
        wanted = np.linspace(self.min_fraction * full, full, self.steps)[:-1]
        rounded = (max(1, round(float(size) / multiple_of)) * multiple_of for size in wanted)
        return sorted({size for size in rounded if size < full} | {full})


def checked(axis: str, given: Sequence[int] | None, full: int, default: Sequence[int]) -> tuple[int, ...]:
    """Ascending distinct sizes. Raises ValueError where one is no whole number from 1 to ``full``, or none is given."""
    values = list(default if given is None else given)
    if not values:
        raise ValueError(
            f"search_space.{axis}=[]: the list of choices is empty; allowed are sizes between 1 and {full}"
        )
    if any(isinstance(value, bool) or int(value) != value for value in values):
        raise ValueError(f"search_space.{axis}={values}: allowed are whole numbers between 1 and {full}")
    if min(values) < 1 or max(values) > full:
        raise ValueError(f"search_space.{axis}={values}: the model has {full}; allowed are sizes between 1 and {full}")
    return tuple(sorted({int(value) for value in values}))


def checked_ratios(given: Sequence[float], full: float) -> tuple[float, ...]:
    """Ascending distinct ratios. Raises ValueError where one is not above 0 and at most ``full``, or none is given."""
    values = sorted({float(value) for value in given})
    if not values:
        raise ValueError(
            f"search_space.ffn_ratio=[]: the list of choices is empty; allowed are ratios above 0 and at most {full:g}"
        )
    if values[0] <= 0 or values[-1] > full + 1e-9:
        raise ValueError(
            f"search_space.ffn_ratio={values}: the model has {full:g}; allowed are ratios above 0 and at most {full:g}"
        )
    return tuple(values)
