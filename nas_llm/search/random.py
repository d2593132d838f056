"""Random search: architectures drawn without replacement (Bergstra & Bengio 2012), the control of every other search.

Uniform over the architectures of a small space, over the choices of every axis of a large one (paper 1, section 3.2).
"""

from dataclasses import dataclass
from typing import ClassVar

from nas_llm.search.genomes import Genome
from nas_llm.search.rounds import RoundSearch

DRAWN_AT_ONCE = 64  # so that a search that is killed has not decoded its whole budget


@dataclass
class RandomSearch(RoundSearch):
    """Asks for random architectures, whatever the answers."""

    name: ClassVar[str] = "random"

    def _propose(self, wanted: int) -> list[Genome]:
        return self.genomes.unseen(min(wanted, DRAWN_AT_ONCE))
