"""Multiply-accumulates of one forward pass (1 MAC = 2 FLOPs), from shapes alone, attention over all positions
included.
"""

from dataclasses import dataclass
from typing import ClassVar

from nas_llm.architecture import Architecture
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.protocol import Direction, beside


@dataclass(frozen=True)
class Macs:
    """MACs of a forward pass over (batch_size, sequence_length), or of it per token; ``adapters`` as of
    :class:`~nas_llm.objectives.Params`.

    Raises:
        ValueError: a size below 1.
    """

    name: ClassVar[str] = "macs"
    unit: ClassVar[str] = "MACs"
    direction: ClassVar[Direction] = "min"

    batch_size: int = 1
    sequence_length: int = 128
    per_token: bool = False
    adapters: bool | None = None

    def __post_init__(self) -> None:
        for key in ("batch_size", "sequence_length"):
            if getattr(self, key) < 1:
                raise ValueError(f"objectives.macs.{key}={getattr(self, key)}: it must be at least 1")

    def __call__(self, supernet: Supernet, architecture: Architecture) -> float:
        macs = supernet.macs(
            architecture,
            batch_size=self.batch_size,
            sequence_length=self.sequence_length,
            adapters=beside(supernet, self.adapters),
        )
        return macs / (self.batch_size * self.sequence_length) if self.per_token else float(macs)
