"""Which architectures one optimizer step trains.

A sampler is a frozen dataclass, called with the number of the step and a generator derived from (seed, step), so that
every rank, every micro-batch and every resumed run draws the same.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.samplers.random import RandomSampler
from nas_llm.samplers.sandwich import SandwichSampler
from nas_llm.samplers.standard import StandardSampler


class Sampler(Protocol):
    """The architectures of one optimizer step, the largest (the teacher) first where it is among them."""

    def __call__(self, step: int, rng: np.random.Generator) -> list[Architecture]: ...


__all__ = ["RandomSampler", "Sampler", "SandwichSampler", "StandardSampler"]
