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
FINE = 100  # bins; of finer grids most have to hold a sub-network, which so many of them tell
UNIFORM_TRIES = 4  # uniform samples for every sub-network that is wanted
AIMED_TRIES = 8  # of the aimed proposal, for every sub-network that is wanted; 50 at least

logger = logging.getLogger(__name__)


def fill(
    space: SearchSpace,
    num_parameters: Count,
    bins: ParameterBins,
    per_bin: int,
    rng: np.random.Generator,
    *,
    setting: str = "sampler.candidates",
) -> list[list[Architecture]]:
    """At most ``per_bin`` distinct random sub-networks of every bin, in random order.

    Bins that hold fewer are reported, and bounded effort is spent on those that seem to. ``setting`` is the key of the
    grid, whose ``bins`` and ``candidates_per_bin`` errors and warnings name.

    Raises:
        ValueError: most of more than ``FINE`` bins are empty.
    """
    pools: list[dict[Architecture, None]] = [{} for _ in range(len(bins))]
    enumerated = math.prod(space.gene_sizes) <= ENUMERABLE
    if enumerated:
        _place(_everything(space), num_parameters, bins, pools, None)
        if len(bins) > FINE and 2 * sum(map(bool, pools)) < len(bins):
            counts = {num_parameters(architecture) for pool in pools for architecture in pool}
            raise _too_fine(bins, f"its sub-networks have {len(counts):,} different parameter counts", setting)
    else:
        _refuse_too_fine(space, num_parameters, bins, rng, setting)
        uniform = (space.sample(rng) for _ in range(UNIFORM_TRIES * per_bin * len(bins)))
        _place(uniform, num_parameters, bins, pools, per_bin)
        for place, pool in enumerate(pools):
            _aim(space, num_parameters, bins.edges[place : place + 2], pool, per_bin, rng)
    found = [list(pool) for pool in pools]
    _report(bins, [len(pool) for pool in found], per_bin, setting, enumerated)
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
    for _ in range(_tries(per_bin)):
        if len(pool) >= per_bin:
            return
        architecture = aimed(space, num_parameters, edges[0], edges[1], rng)
        if architecture is not None:
            pool[architecture] = None


def _tries(per_bin: int) -> int:
    return max(50, AIMED_TRIES * per_bin)


def _refuse_too_fine(
    space: SearchSpace, num_parameters: Count, bins: ParameterBins, rng: np.random.Generator, setting: str
) -> None:
    """Look at some bins of a fine grid before effort is spent on all of them."""
    if len(bins) <= FINE:
        return
    empty = 0
    for place in np.linspace(0, len(bins) - 1, FINE).astype(int).tolist():
        pool: dict[Architecture, None] = {}
        _aim(space, num_parameters, bins.edges[place : place + 2], pool, 1, rng)
        empty += not pool
        if 2 * empty > FINE:
            raise _too_fine(bins, f"none was found in more than half of {FINE} of them", setting)


def _too_fine(bins: ParameterBins, why: str, setting: str) -> ValueError:
    width = bins.edges[1] - bins.edges[0]
    return ValueError(
        f"{setting}.bins={len(bins)}: the search space has no sub-network in most bins, which are {width:,.0f} "
        f"parameters wide ({why}); set {setting}.bins=22, or a few times as many"
    )


def _report(bins: ParameterBins, sizes: list[int], per_bin: int, setting: str, enumerated: bool) -> None:
    """One line for all bins that hold fewer than ``per_bin``, if any."""
    empty = [place for place, size in enumerate(sizes) if not size]
    short = [place for place, size in enumerate(sizes) if 0 < size < per_bin]
    said = []
    if empty:
        low, high = bins.edges[empty[0] : empty[0] + 2]
        each = "" if len(empty) == 1 else "for instance "
        said.append(f"{len(empty):,} of {len(bins):,} bins are empty, {each}{low:,.0f} to {high:,.0f} parameters")
    if short:
        hold = "1 bin holds" if len(short) == 1 else f"{len(short):,} bins hold"
        said.append(f"{hold} fewer than {per_bin:,} candidates, the last {sizes[short[-1]]:,}")
    if said:
        why = "the space has no more: it was enumerated" if enumerated else f"after {_tries(per_bin):,} tries each"
        logger.warning("%s.bins=%d: %s (%s)", setting, len(bins), "; ".join(said), why)
