"""Sub-networks whose parameter counts lie in equally wide bins (paper 1, section 4.1: the grid G of K bins).

A joint space is skewed towards small networks (paper 1, figure 2a), so that rejection sampling alone finds next to
nothing in the bins of large ones. Small spaces are enumerated. Of large ones, uniform samples fill the bins they fall
into; for the others, a proposal aims at the bin: with u uniform in (0, 1) for every gene and lambda > 0, the genome

    gene = floor(choices * u ** lambda)

is a uniform sample at lambda = 1, the largest network as lambda -> 0 and the smallest as lambda -> infinity, and no
gene ever shrinks on the way, so that bisection on log(lambda) meets the bin.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.search_space import SearchSpace

Count = Callable[[Architecture], int]

ENUMERABLE = 20_000  # genomes of a space that is counted whole
UNIFORM_TRIES = 4  # uniform samples for every sub-network that is wanted
AIMED_TRIES = 8  # of the aimed proposal, for every sub-network that is wanted; 50 at least
HALVINGS = 14
LARGEST_EXPONENT = 5.0  # |log(lambda)|

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParameterBins:
    """``edges`` (bins + 1,) ascending parameter counts; a bin holds its lower edge, the last one its upper edge too."""

    edges: tuple[float, ...]

    @classmethod
    def of(cls, space: SearchSpace, num_parameters: Count, bins: int) -> ParameterBins:
        """Equally wide, from the smallest to the largest network of the space.

        Raises:
            ValueError: ``bins`` < 1, or all networks of the space have the same number of parameters.
        """
        if bins < 1:
            raise ValueError(f"sampler.candidates.bins={bins}: allowed is 1 or more, for instance 22")
        low, high = num_parameters(space.smallest()), num_parameters(space.largest())
        if low >= high:
            raise ValueError(
                f"sampler.candidates.bins={bins}: every sub-network of the search space has {low:,} parameters, which "
                "is no range to divide; widen search_space, or take sampler/candidates=uniform"
            )
        return cls(tuple(np.linspace(low, high, bins + 1).tolist()))

    def __len__(self) -> int:
        return len(self.edges) - 1

    def index(self, parameters: float) -> int | None:
        """The bin of a parameter count; None outside of all."""
        if not self.edges[0] <= parameters <= self.edges[-1]:
            return None
        return min(int(np.searchsorted(self.edges, parameters, side="right")) - 1, len(self) - 1)


def fill(
    space: SearchSpace, num_parameters: Count, bins: ParameterBins, per_bin: int, rng: np.random.Generator
) -> list[list[Architecture]]:
    """At most ``per_bin`` distinct random sub-networks of every bin, in random order.

    Bins that hold none are reported, and bounded effort is spent on those that seem to.
    """
    pools: list[dict[Architecture, None]] = [{} for _ in range(len(bins))]
    if math.prod(space.gene_sizes) <= ENUMERABLE:
        _place(_everything(space), num_parameters, bins, pools, None)
    else:
        uniform = (space.sample(rng) for _ in range(UNIFORM_TRIES * per_bin * len(bins)))
        _place(uniform, num_parameters, bins, pools, per_bin)
        for place, pool in enumerate(pools):
            _aim(space, num_parameters, bins.edges[place : place + 2], pool, per_bin, rng)
    found = [list(pool) for pool in pools]
    _report(bins, found)
    return [[pool[i] for i in rng.permutation(len(pool))[:per_bin]] for pool in found]


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


def _everything(space: SearchSpace) -> Iterable[Architecture]:
    return (space.decode(genome) for genome in itertools.product(*(range(size) for size in space.gene_sizes)))


def _place(
    architectures: Iterable[Architecture],
    num_parameters: Count,
    bins: ParameterBins,
    pools: list[dict[Architecture, None]],
    per_bin: int | None,
) -> None:
    for architecture in architectures:
        place = bins.index(num_parameters(architecture))
        if place is not None and (per_bin is None or len(pools[place]) < per_bin):
            pools[place][architecture] = None


def _aim(
    space: SearchSpace,
    num_parameters: Count,
    edges: tuple[float, ...],
    pool: dict[Architecture, None],
    per_bin: int,
    rng: np.random.Generator,
) -> None:
    ends = [a for a in (space.smallest(), space.largest()) if edges[0] <= num_parameters(a) <= edges[1]]
    pool.update(dict.fromkeys(ends[: per_bin - len(pool)]))
    for _ in range(max(50, AIMED_TRIES * per_bin)):
        if len(pool) >= per_bin:
            return
        architecture = aimed(space, num_parameters, edges[0], edges[1], rng)
        if architecture is not None:
            pool[architecture] = None


def _report(bins: ParameterBins, found: list[list[Architecture]]) -> None:
    empty = [place for place, pool in enumerate(found) if not pool]
    if empty:
        ranges = ", ".join(f"{bins.edges[i]:,.0f} to {bins.edges[i + 1]:,.0f}" for i in empty)
        logger.warning(
            "sampler.candidates.bins=%d: the search space has no sub-network of %s parameters; %d bins are filled",
            len(bins),
            ranges,
            len(bins) - len(empty),
        )
