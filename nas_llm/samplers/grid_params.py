"""The arm "Grid-params" of paper 1's ablation: a random sub-network of every parameter bin (sections 4.1 and 5.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.samplers.bins import ParameterBins, fill
from nas_llm.samplers.candidates import Grid, Scoring, refuse_unprepared
from nas_llm.search_space import SearchSpace


@dataclass(frozen=True)
class GridParams:
    """``bins`` equally wide bins between the smallest and the largest parameter count; ``seed`` draws the grid.

    Raises:
        ValueError: ``bins`` < 1; when prepared: a space whose networks all have the same size, or bins most of which it
            leaves empty.
    """

    bins: int = 22
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ValueError(f"sampler.candidates.bins={self.bins}: allowed is 1 or more, for instance 22")

    def prepared(self, scoring: Scoring) -> Grid:
        key = f"{scoring.setting}.bins"
        bins = ParameterBins.of(scoring.space, scoring.num_parameters, self.bins, key=key)
        rng = np.random.default_rng(self.seed)
        pools = fill(scoring.space, scoring.num_parameters, bins, 1, rng, setting=scoring.setting)
        return Grid(tuple(pool[0] for pool in pools if pool))

    def draw(self, space: SearchSpace, rng: np.random.Generator) -> Architecture:
        return refuse_unprepared(self)
