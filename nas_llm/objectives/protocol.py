"""What an objective is: one number of one sub-network, with a name, a unit and a direction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

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


@dataclass(frozen=True)
class Estimate:
    """A value over samples, and the standard error that so many leave, both in the objective's unit."""

    value: float
    samples: int
    standard_error: float


@dataclass(frozen=True)
class Details:
    """What an objective's value is made of: the whole, its parts by name, and a JSON-able record of every sample."""

    whole: Estimate
    parts: Mapping[str, Estimate]
    records: Sequence[Mapping[str, Any]]


@runtime_checkable
class Detailed(Protocol):
    """An objective on samples of its own, which can tell what its value is made of."""

    name: ClassVar[str]

    def details(self, supernet: Supernet, architecture: Architecture) -> Details:
        """The value for the sub-network (``whole.value``) and all that it is made of."""


@runtime_checkable
class Sampled(Protocol):
    """An objective on samples of its own, which are no records of the data's split."""

    @property
    def samples(self) -> int:
        """How many."""


def beside(supernet: Supernet, adapters: bool | None) -> bool:
    """Whether low-rank adapters are counted and run beside the weights: as ``adapters`` says, or, where it is None, as
    an export with ``export.adapters=auto`` writes them."""
    if adapters is not None or not supernet.attached:
        return bool(adapters)
    from nas_llm.peft.merging import mergeable

    return not mergeable(supernet.model)


def measure(
    objectives: Sequence[Objective],
    supernet: Supernet,
    architecture: Architecture,
    known: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, float]:
    """All objectives of one sub-network, and its parameters in any case (arithmetic that every table needs).

    What is `known` of it, by the objective's name, is not measured again, nor is what one objective tells of another:
    perplexity is the exponential of the loss.
    """
    measured = {objective: known[objective.name] for objective in objectives if objective.name in known}
    missing = [objective for objective in objectives if objective.name not in known]
    for objective in sorted(missing, key=lambda objective: isinstance(objective, Derived)):
        derived = objective.derive(measured) if isinstance(objective, Derived) else None
        measured[objective] = objective(supernet, architecture) if derived is None else derived
    named = {objective.name: measured[objective] for objective in objectives}
    if "params" in named:
        return {"params": named["params"], **named}
    return {"params": float(supernet.num_parameters(architecture, adapters=beside(supernet, None))), **named}


def directions(objectives: Iterable[Objective]) -> dict[str, Direction]:
    """Name -> "min" or "max", as searches take them."""
    return {objective.name: objective.direction for objective in objectives}
