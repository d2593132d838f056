"""The sandwich rule (paper 1, equation 1; Yu et al. 2019): the largest network, k sampled sub-networks and the
smallest."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.samplers.candidates import Candidates, Uniform
from nas_llm.search_space import SearchSpace


@dataclass(frozen=True)
class SandwichSampler:
    """``k`` of the ``candidates`` between the largest and the smallest.

    ``smallest=False`` is what the authors' code does; without ``largest`` a step has no in-place teacher.
    """

    space: SearchSpace
    k: int = 2
    smallest: bool = True
    largest: bool = True
    candidates: Candidates = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ValueError(
                f"sampler.k={self.k}: allowed is 0 or more sampled sub-networks a step, for instance sampler.k=2"
            )
        if not (self.k or self.smallest or self.largest):
            raise ValueError(
                "sampler.k=0 with sampler.smallest=false and sampler.largest=false trains nothing: set sampler.k=2"
            )

    def __call__(self, step: int, rng: np.random.Generator) -> list[Architecture]:
        drawn = [self.candidates.draw(self.space, rng) for _ in range(self.k)]
        first = [self.space.largest()] if self.largest else []
        last = [self.space.smallest()] if self.smallest else []
        return first + drawn + last
