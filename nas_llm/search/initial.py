"""Architectures that a search starts from: points that are known to be worth a look before anything is measured.

Each is a callable (supernet, space) -> architectures of the space, chosen by the group search/initial; anything else of
that form can be one. The architectures depend on the sorted super-network and on the space alone, so that a resumed
search starts from the same.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nas_llm.architecture import Architecture
from nas_llm.search_space import SearchSpace


class Initial(Protocol):
    def __call__(self, supernet: Any, space: SearchSpace) -> list[Architecture]:
        """Architectures of the space, in the order in which they are measured."""


@dataclass(frozen=True)
class DepthOnly:
    """The whole width and every number of layers, the most important ones kept: what layer dropping would try."""

    def __call__(self, supernet: Any, space: SearchSpace) -> list[Architecture]:
        whole = {axis: count - 1 for axis, count in space.choice_counts.items()}
        return [space.uniform(whole | {"depth": depth}) for depth in reversed(range(len(space.depth)))]


@dataclass(frozen=True)
class ImportanceOrder:
    """A nested chain from the largest network to the smallest, every axis at the same part of its way.

    Each network keeps the most important units of every axis and the most important layers, and holds the next one:
    what pruning in the order of importance would try, without asking which axis to prune.

    Raises:
        ValueError: ``points`` < 2.
    """

    points: int = 8

    def __post_init__(self) -> None:
        if self.points < 2:
            raise ValueError(
                f"search.initial.points={self.points}: allowed is 2 or more, the largest and the smallest among them"
            )

    def __call__(self, supernet: Any, space: SearchSpace) -> list[Architecture]:
        chain = [
            space.uniform({axis: round(part * (count - 1)) for axis, count in space.choice_counts.items()})
            for part in np.linspace(1, 0, self.points).tolist()
        ]
        return list(dict.fromkeys(chain))
