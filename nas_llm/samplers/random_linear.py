"""Random sampling with a probability that grows: the largest network at first, sub-networks more and more.

In step t of T, with probability (t + 1) / T a sampled sub-network is trained, else the largest (the strategy
"random-linear" of the papers' authors' library).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.samplers.candidates import Candidates, Uniform
from nas_llm.search_space import SearchSpace


@dataclass(frozen=True)
class RandomLinearSampler:
    """``steps``: T, after which every step trains one of the ``candidates``.

    Raises:
        ValueError: ``steps`` < 1.
    """

    space: SearchSpace
    steps: int
    candidates: Candidates = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(
                f"sampler.steps={self.steps}: allowed is 1 or more optimizer steps; set trainer.max_steps, which it "
                "follows, or sampler.steps"
            )

    def __call__(self, step: int, rng: np.random.Generator) -> list[Architecture]:
        if rng.random() < (step + 1) / self.steps:
            return [self.candidates.draw(self.space, rng)]
        return [self.space.largest()]
