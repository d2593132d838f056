"""Perplexity: the exponential of the mean token cross-entropy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from nas_llm.architecture import Architecture
from nas_llm.evaluation.text_perplexity import exponential
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.loss import Loss
from nas_llm.objectives.protocol import Batch, Direction, Objective


@dataclass(frozen=True, eq=False)
class Perplexity:
    """exp(loss) of the sub-network inside the super-network; infinite where that overflows.

    Raises:
        ValueError: as `Loss`.
    """

    name: ClassVar[str] = "perplexity"
    unit: ClassVar[str] = "1"
    direction: ClassVar[Direction] = "min"

    batches: Sequence[Batch] = field(repr=False)

    def __call__(self, supernet: Supernet, architecture: Architecture) -> float:
        return exponential(Loss(self.batches)(supernet, architecture))

    def derive(self, measured: Mapping[Objective, float]) -> float | None:
        """From the loss, where that was measured on the same batches."""
        same = (value for other, value in measured.items() if isinstance(other, Loss) and other.batches is self.batches)
        return next((exponential(loss) for loss in same), None)
