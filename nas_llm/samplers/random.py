"""One sub-network a step (the arm "Random" of paper 1's ablation)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.samplers.candidates import Candidates, Uniform
from nas_llm.search_space import SearchSpace


@dataclass(frozen=True)
class RandomSampler:
    """Every step trains one of the ``candidates``; there is no teacher in the step."""

    space: SearchSpace
    candidates: Candidates = field(default_factory=Uniform)

    def __call__(self, step: int, rng: np.random.Generator) -> list[Architecture]:
        return [self.candidates.draw(self.space, rng)]
