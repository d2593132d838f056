"""Equally wide bins of parameter counts (paper 1, section 4.1: the grid G of K bins), and sub-networks that meet one.

A joint space is skewed towards small networks (paper 1, figure 2a), so that uniform samples hardly ever fall into the
bins of large ones. The proposal here aims at a bin: with u uniform in (0, 1) for every gene and lambda > 0, the genome

    gene = floor(choices * u ** lambda)

is a uniform sample at lambda = 1, the largest network as lambda -> 0 and the smallest as lambda -> infinity, and no
gene ever shrinks on the way, so that bisection on log(lambda) meets the bin.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.search_space import SearchSpace

Count = Callable[[Architecture], int]

HALVINGS = 14
LARGEST_EXPONENT = 5.0  # |log(lambda)|


@dataclass(frozen=True)
class ParameterBins:
    """``edges`` (bins + 1,) ascending parameter counts; a bin holds its lower edge, the last one its upper edge too."""

    edges: tuple[float, ...]

    @classmethod
    def of(
        cls,
        space: SearchSpace,
        num_parameters: Count,
        bins: int,
        *,
        key: str = "sampler.candidates.bins",
        otherwise: str = "sampler/candidates=uniform",
    ) -> ParameterBins:
        """Equally wide, from the smallest to the largest network of the space.

        ``key`` is the setting that ``bins`` comes from, ``otherwise`` the choice that needs no bins; errors name them.

        Raises:
            ValueError: ``bins`` < 1, or more than there are counts from the smallest to the largest network.
        """
        if bins < 1:
            raise ValueError(f"{key}={bins}: allowed is 1 or more, for instance 22")
        low, high = num_parameters(space.smallest()), num_parameters(space.largest())
        if low >= high:
            raise ValueError(
                f"{key}={bins}: every sub-network of the search space has {low:,} parameters, which is no range to "
                f"divide; widen search_space, or take {otherwise}"
            )
        if bins > high - low:
            raise ValueError(
                f"{key}={bins}: the search space has sub-networks of {low:,} to {high:,} parameters, which are fewer "
                f"counts than bins; set {key}=22, or a few times as many"
            )
        return cls(tuple(np.linspace(low, high, bins + 1).tolist()))

    def __len__(self) -> int:
        return len(self.edges) - 1

    def index(self, parameters: float) -> int | None:
        """The bin of a parameter count; None outside of all."""
        if not self.edges[0] <= parameters <= self.edges[-1]:
            return None
        return min(bisect_right(self.edges, parameters) - 1, len(self) - 1)


def aimed(
    space: SearchSpace, num_parameters: Count, low: float, high: float, rng: np.random.Generator
) -> Architecture | None:
    """A random sub-network of ``low`` to ``high`` parameters; None where the line that was drawn misses them.

    The line is followed to a count drawn uniformly from the range, and the nearest network on the way is taken.
    """
    sizes = np.array(space.gene_sizes)
    u, target = rng.random(len(sizes)), rng.uniform(low, high)
    grow, shrink = -LARGEST_EXPONENT, LARGEST_EXPONENT
    best, distance = None, math.inf
    for _ in range(HALVINGS):
        exponent = (grow + shrink) / 2  # 0 at first: the uniform sample
        genome = np.minimum((sizes * u ** math.exp(exponent)).astype(np.int64), sizes - 1)
        architecture = space.decode(genome)
        parameters = num_parameters(architecture)
        if low <= parameters <= high and abs(parameters - target) < distance:
            best, distance = architecture, abs(parameters - target)
        if parameters > target:
            grow = exponent
        else:
            shrink = exponent
    return best
