"""Standard fine-tuning: the largest network alone (the arm "Standard" of paper 1's ablation)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.search_space import SearchSpace


@dataclass(frozen=True)
class StandardSampler:
    """Every step trains the largest network of the space."""

    space: SearchSpace

    def __call__(self, step: int, rng: np.random.Generator) -> list[Architecture]:
        return [self.space.largest()]
