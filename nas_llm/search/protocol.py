"""What a search is: it asks for architectures, is told what they measure, and says when it is done.

A search is a deterministic function of its fields and of what it was told, in order. That is why a killed search
resumes by replay: it starts over and the archive answers whatever was measured before.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from nas_llm.architecture import Architecture
from nas_llm.search.archive import Evaluation
from nas_llm.search_space import SearchSpace

Direction = Literal["min", "max"]


class Search(Protocol):
    """Ask and tell over a search space. Built with the runtime arguments `space` and `directions`."""

    @property
    def space(self) -> SearchSpace:
        """The search space."""

    @property
    def directions(self) -> Mapping[str, Direction]:
        """Objective's name -> "min" or "max"; evaluations must carry these names, and may carry more."""

    @property
    def evaluations(self) -> int:
        """Budget: distinct architectures this search asks for."""

    @property
    def name(self) -> str:
        """Written to the archive as the evaluations' `source`."""

    @property
    def done(self) -> bool:
        """The budget is spent, or the search space is."""

    def ask(self, n: int) -> list[Architecture]:
        """At most `n` architectures, none asked before; empty only while answers are outstanding, or when done."""

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Answers, in any order. Raises ValueError for an architecture that is not outstanding."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
