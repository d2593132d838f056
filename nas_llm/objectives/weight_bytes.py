"""Bytes of the weights in the precision that they have now, packed where they are integers; from shapes alone.

Zeros take as much room as other values.
"""

from dataclasses import dataclass
from typing import ClassVar

from nas_llm.architecture import Architecture
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.protocol import Direction, beside


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of the sub-network's weights; ``adapters`` as of :class:`~nas_llm.objectives.Params`."""

    name: ClassVar[str] = "weight_bytes"
    unit: ClassVar[str] = "B"
    direction: ClassVar[Direction] = "min"

    adapters: bool | None = None

    def __call__(self, supernet: Supernet, architecture: Architecture) -> float:
        return float(supernet.weight_bytes(architecture, adapters=beside(supernet, self.adapters)))
