"""What an objective is: one number of one sub-network, with a name, a unit and a direction."""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from nas_llm.architecture import Architecture
from nas_llm.models.supernet import Supernet

Direction = Literal["min", "max"]
Batch = Mapping[str, Tensor]  # input_ids, attention_mask, labels: LongTensors of shape (batch, sequence)


class Objective(Protocol):
    """A frozen dataclass; the runtime argument `batches` is passed where the field exists."""

    name: ClassVar[str]
    unit: ClassVar[str]
    direction: ClassVar[Direction]

    def __call__(self, supernet: Supernet, architecture: Architecture) -> float:
        """The value for the sub-network, in `unit`."""


@runtime_checkable
class Derived(Protocol):
    """An objective that may be computed from another one's value instead of being measured."""

    def derive(self, measured: Mapping[Objective, float]) -> float | None:
        """Its value if something in `measured` determines it; None where it has to be measured."""


def measure(objectives: Sequence[Objective], supernet: Supernet, architecture: Architecture) -> dict[str, float]:
    """All objectives of one sub-network, and its parameters in any case (arithmetic that every table needs).

    What one objective tells of another is not measured twice: perplexity is the exponential of the loss.
    """
    values: dict[int, float] = {}
    measured: dict[Objective, float] = {}
    for index in sorted(range(len(objectives)), key=lambda i: isinstance(objectives[i], Derived)):
        objective = objectives[index]
        known = objective.derive(measured) if isinstance(objective, Derived) else None
        values[index] = measured[objective] = objective(supernet, architecture) if known is None else known
    named = {objective.name: values[index] for index, objective in enumerate(objectives)}
    return {"params": float(supernet.num_parameters(architecture)), **named}


def directions(objectives: Iterable[Objective]) -> dict[str, Direction]:
    """Name -> "min" or "max", as searches take them."""
    return {objective.name: objective.direction for objective in objectives}
