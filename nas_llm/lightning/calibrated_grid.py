"""The calibrated grid of paper 1 (section 4.1) as what a search starts from: the best sub-network of every size.

Of each bin's candidates the one of the highest weight magnitude, on the network as it is when the search begins.
"""

from dataclasses import dataclass

from nas_llm.architecture import Architecture
from nas_llm.models.magnitude import Magnitude
from nas_llm.models.supernet import Supernet
from nas_llm.samplers import Scoring
from nas_llm.samplers.calibrated import Calibrated
from nas_llm.search_space import SearchSpace


@dataclass(frozen=True)
class CalibratedGrid:
    """`bins` equally wide bins of parameter counts, the best of `candidates_per_bin` of each; `seed` draws them.

    Raises:
        ValueError: `bins` or `candidates_per_bin` < 1, or a space whose networks all have the same size.
    """

    bins: int = 12
    candidates_per_bin: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("bins", "candidates_per_bin"):
            if getattr(self, key) < 1:
                raise ValueError(f"search.initial.{key}={getattr(self, key)}: allowed is 1 or more")

    def __call__(self, supernet: Supernet, space: SearchSpace) -> list[Architecture]:
        grid = Calibrated(self.bins, self.candidates_per_bin, "magnitude", self.seed)
        scores = {"magnitude": lambda: Magnitude.of(supernet, space)}
        scoring = Scoring(space, supernet.num_parameters, scores, "search.initial")
        return list(grid.prepared(scoring).architectures)
