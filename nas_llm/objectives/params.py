"""Number of parameters, from shapes alone, tied weights counted once."""

from dataclasses import dataclass
from typing import ClassVar

from nas_llm.architecture import Architecture
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.protocol import Direction


@dataclass(frozen=True)
class Params:
    """Parameters of the sub-network; without ``adapters`` those of the network into which they are merged."""

    name: ClassVar[str] = "params"
    unit: ClassVar[str] = "parameters"
    direction: ClassVar[Direction] = "min"

    adapters: bool = True

    def __call__(self, supernet: Supernet, architecture: Architecture) -> float:
        return float(supernet.num_parameters(architecture, adapters=self.adapters))
