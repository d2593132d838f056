"""Calibrated sampling (paper 1, section 4.1): of M sub-networks of every parameter bin, the best one.

With g_0 < ... < g_K equally wide bins and S_i the M sub-networks drawn with g_{i-1} <= params(theta) <= g_i,

    Q = {best of S_i : i = 1 ... K},        mag(theta) = ||w_theta||.

The paper's formula prints arg min mag beside the words "the sub-networks with the highest weight magnitude"; the words
are followed here, as they are in the authors' code. Other scores than the magnitude: the loss or the perplexity of the
untrained sub-network on calibration data (lower is better), or the share of the importance scores that it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.samplers.bins import ParameterBins, fill
from nas_llm.samplers.candidates import Grid, Scoring, refuse_unprepared
from nas_llm.search_space import SearchSpace

By = Literal["magnitude", "loss", "perplexity", "importance"]


@dataclass(frozen=True)
class Calibrated:
    """``bins`` (K), ``candidates_per_bin`` (M), and ``by`` what the best of a bin is told; ``seed`` draws candidates.

    Raises:
        ValueError: ``bins`` or ``candidates_per_bin`` < 1, an unknown score; when prepared: a space whose
            networks all have the same size, bins most of which it leaves empty, or a score that this
            run has no data for.
    """

    bins: int = 22
    candidates_per_bin: int = 100
    by: By = "magnitude"
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("bins", "candidates_per_bin"):
            if getattr(self, key) < 1:
                default = type(self).__dataclass_fields__[key].default
                raise ValueError(
                    f"sampler.candidates.{key}={getattr(self, key)}: allowed is 1 or more, for instance {default}"
                )
        if self.by not in get_args(By):
            raise ValueError(f"sampler.candidates.by={self.by}: allowed are {', '.join(get_args(By))}")

    def prepared(self, scoring: Scoring) -> Grid:
        key = f"{scoring.setting}.bins"
        bins = ParameterBins.of(scoring.space, scoring.num_parameters, self.bins, key=key)
        score = scoring.scores[self.by]()
        rng = np.random.default_rng(self.seed)
        pools = fill(scoring.space, scoring.num_parameters, bins, self.candidates_per_bin, rng, setting=scoring.setting)
        return Grid(tuple(max(pool, key=score) for pool in pools if pool))

    def draw(self, space: SearchSpace, rng: np.random.Generator) -> Architecture:
        return refuse_unprepared(self)
