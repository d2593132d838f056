"""One sub-network a step, drawn uniformly from the space (the arm "Random" of paper 1's ablation)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.search_space import SearchSpace


@dataclass(frozen=True)
class RandomSampler:
    """Every step trains one sub-network; there is no teacher in the step."""

    space: SearchSpace

    def __call__(self, step: int, rng: np.random.Generator) -> list[Architecture]:
        return [self.space.sample(rng)]
