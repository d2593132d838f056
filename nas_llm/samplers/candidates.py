"""Where the sub-networks of a step come from: the whole space, or a grid that is made once before training.

A sampler holds its candidates as settings. Those of a grid are prepared once the super-network is sorted and before it
is trained; only then can they be drawn from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.search_space import SearchSpace

Score = Callable[[Architecture], float]
"""Of a sub-network; higher is better."""


@dataclass(frozen=True)
class Scoring:
    """What a grid is made from: the number of parameters of an architecture, and scores by name, each made when it is
    first needed. ``setting`` is the key of the grid's settings, for errors and warnings."""

    space: SearchSpace
    num_parameters: Callable[[Architecture], int]
    scores: Mapping[str, Callable[[], Score]]
    setting: str = "sampler.candidates"


class Candidates(Protocol):
    """What sub-networks are drawn from."""

    def draw(self, space: SearchSpace, rng: np.random.Generator) -> Architecture:
        """One of them, in the space."""


@runtime_checkable
class Unprepared(Protocol):
    """Settings of a grid, which is made of the sorted super-network before it is trained."""

    def prepared(self, scoring: Scoring) -> Grid:
        """The grid."""


@dataclass(frozen=True)
class Uniform:
    """Uniform over the choices of every axis of the space (theta ~ Theta in paper 1, equation 1)."""

    def draw(self, space: SearchSpace, rng: np.random.Generator) -> Architecture:
        return space.sample(rng)


@dataclass(frozen=True)
class Grid:
    """A fixed set of sub-networks, the Q of paper 1 (section 4.1), each as likely as the others."""

    architectures: tuple[Architecture, ...]

    def draw(self, space: SearchSpace, rng: np.random.Generator) -> Architecture:
        return self.architectures[int(rng.integers(len(self.architectures)))]


def refuse_unprepared(candidates: Candidates) -> Architecture:
    """What ``draw`` of candidates that still are settings does: a mistake of the caller."""
    raise RuntimeError(f"{type(candidates).__name__}: call prepared(scoring) before drawing from it")
