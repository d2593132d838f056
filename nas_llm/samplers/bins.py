"""Sub-networks whose parameter counts lie in equally wide bins (paper 1, section 4.1: the grid G of K bins).

Small spaces are enumerated. Of large ones, uniform samples fill the bins they fall into, and a proposal that aims at a
bin fills the others.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.parameter_bins import Count, ParameterBins, aimed
from nas_llm.search_space import SearchSpace

ENUMERABLE = 20_000  # genomes of a space that is counted whole
UNIFORM_TRIES = 4  # uniform samples for every sub-network that is wanted
AIMED_TRIES = 8  # of the aimed proposal, for every sub-network that is wanted; 50 at least

logger = logging.getLogger(__name__)


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
