"""Number of parameters, from shapes alone, tied weights counted once."""

from dataclasses import dataclass
from typing import ClassVar

from nas_llm.architecture import Architecture
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.protocol import Direction, beside


@dataclass(frozen=True)
class Params:
    """Parameters of the sub-network: with ``adapters`` as they are trained, without those of the network into which
    they are merged; None: of what is exported (``nas_llm.objectives.protocol.beside``)."""

    name: ClassVar[str] = "params"
    unit: ClassVar[str] = "parameters"
    direction: ClassVar[Direction] = "min"

    adapters: bool | None = None

    def __call__(self, supernet: Supernet, architecture: Architecture) -> float:
        return float(supernet.num_parameters(architecture, adapters=beside(supernet, self.adapters)))
