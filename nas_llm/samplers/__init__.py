"""Which architectures one optimizer step trains.

A sampler is a frozen dataclass, called with the number of the step and a generator derived from (seed, step), so that
every rank, every micro-batch and every resumed run draws the same.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.samplers.calibrated import Calibrated
from nas_llm.samplers.candidates import Candidates, Grid, Scoring, Uniform
from nas_llm.samplers.grid_params import GridParams
from nas_llm.samplers.random import RandomSampler
from nas_llm.samplers.random_linear import RandomLinearSampler
from nas_llm.samplers.sandwich import SandwichSampler
from nas_llm.samplers.standard import StandardSampler


class Sampler(Protocol):
    """The architectures of one optimizer step, the largest (the teacher) first where it is among them."""

    def __call__(self, step: int, rng: np.random.Generator) -> list[Architecture]: ...


@runtime_checkable
class DrawsCandidates(Protocol):
    """A sampler, a dataclass, that draws sub-networks from candidates which may have to be prepared."""

    @property
    def candidates(self) -> Candidates: ...


__all__ = [
    "Calibrated",
    "Candidates",
    "DrawsCandidates",
    "Grid",
    "GridParams",
    "RandomLinearSampler",
    "RandomSampler",
    "Sampler",
    "SandwichSampler",
    "Scoring",
    "StandardSampler",
    "Uniform",
]
