"""A search space and measurements for the tests of the search: the real SearchSpace over bare sizes."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.search import GridSearch, HillClimbing, LocalSearch, RandomSearch, StratifiedSearch
from nas_llm.search.rounds import RoundSearch
from nas_llm.search_space import SearchSpace


@dataclass(frozen=True)
class Sizes:
    """As much of a super-network as a search space asks for."""

    hidden: int = 64
    layers: int = 4
    kv_groups: int = 4
    ffn: int = 128
    elastic_axes: frozenset[str] = frozenset({"hidden", "kv_groups", "heads_per_group", "head_dim", "ffn", "layers"})

    @property
    def layer_order(self) -> tuple[int, ...]:
        return tuple(range(self.layers))

    def largest(self) -> Architecture:
        return Architecture(
            self.hidden, tuple(LayerChoice(i, self.kv_groups, 1, 16, self.ffn) for i in range(self.layers))
        )


def joint_space(**kwargs) -> SearchSpace:
    return SearchSpace.joint(Sizes(), **kwargs)


def count(architecture: Architecture) -> int:
    """A parameter count like a transformer's."""
    attention = sum(4 * architecture.hidden * layer.heads * layer.head_dim for layer in architecture.layers)
    return attention + sum(3 * architecture.hidden * layer.ffn for layer in architecture.layers)


def measure(architecture: Architecture, known: Mapping[str, float] = MappingProxyType({})) -> dict[str, float]:
    """Two objectives in conflict; the loss rewards depth more than width, so the front is no diagonal of the space."""
    width = sum(layer.ffn + 4 * layer.heads for layer in architecture.layers)
    loss = 3.0 / len(architecture.layers) + 40.0 / architecture.hidden + 100.0 / width
    return {"params": float(count(architecture)), "loss": loss}


DIRECTIONS = {"params": "min", "loss": "min"}


def other_searches(evaluations: int) -> list[RoundSearch]:
    """One of every searcher beside NSGA-II."""
    space = joint_space()
    searches = [kind(space, DIRECTIONS, evaluations) for kind in (RandomSearch, GridSearch, LocalSearch, HillClimbing)]
    return [*searches, StratifiedSearch(space, DIRECTIONS, evaluations, num_parameters=count, bins=4)]
