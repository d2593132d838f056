"""Number of parameters that are not zero: what is left of a sparse sub-network. Counted, tied weights once.

A weight that is held as integers counts where it stands for another value than zero.
"""

from dataclasses import dataclass
from typing import ClassVar

from nas_llm.architecture import Architecture
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.protocol import Direction, beside
from nas_llm.sparsity.counting import zeros_of_model


@dataclass(frozen=True)
class NonzeroParams:
    """Non-zero parameters of the extracted sub-network; ``adapters`` as of :class:`~nas_llm.objectives.Params`.

    Raises:
        ValueError: from a call, adapters that cannot be merged without loss.
    """

    name: ClassVar[str] = "nonzero_params"
    unit: ClassVar[str] = "parameters"
    direction: ClassVar[Direction] = "min"

    adapters: bool | None = None

    def __call__(self, supernet: Supernet, architecture: Architecture) -> float:
        small = supernet.extract(architecture)
        if supernet.attached and not beside(supernet, self.adapters):
            from nas_llm.peft.merging import merge

            merge(small, tolerances=None)
        return float(zeros_of_model(small).overall.nonzero)
