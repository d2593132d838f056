"""The methods of ``sparsity/`` as baselines: weights of the blocks become zero, every shape stays.

``sparsity`` is the fraction of zeros, ``pattern`` N:M ("2:4": 2 of every 4 neighbours along the inputs stay); None and
None: half of the weights. How each method chooses them is said in its own file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nas_llm.baselines import Batches, Pruned
from nas_llm.baselines.settings import named_as_baseline
from nas_llm.models.supernet import Supernet
from nas_llm.sparsity.amount import Amount
from nas_llm.sparsity.counting import zeros_of_model
from nas_llm.sparsity.magnitude import Magnitude
from nas_llm.sparsity.sparsegpt import SparseGPT
from nas_llm.sparsity.targets import Targets, chosen
from nas_llm.sparsity.wanda import Wanda

if TYPE_CHECKING:
    from nas_llm.sparsity import Sparsity

HALF = 0.5


@dataclass(frozen=True)
class SparsityBaseline(ABC):
    """Fields as above; ``targets`` are linear modules by (the end of) their names, None: all of the blocks.

    Raises:
        ValueError: as the method.
    """

    title: ClassVar[str]

    sparsity: float | None = None
    pattern: str | None = None
    targets: Targets = None

    def __post_init__(self) -> None:
        with named_as_baseline("sparsity"):
            _ = self.method

    @property
    @abstractmethod
    def method(self) -> Sparsity:
        """With the fields as its settings."""

    @property
    def share(self) -> float | None:
        """Half of the weights where the settings say nothing else."""
        return HALF if self.sparsity is None and self.pattern is None else self.sparsity

    def refuse(self, supernet: Supernet) -> None:
        refuse_targets(supernet, self.method)

    def __call__(self, supernet: Supernet, batches: Batches) -> Pruned:
        return sparse(supernet, self.method, batches, self.title)


@dataclass(frozen=True)
class MagnitudeBaseline(SparsityBaseline):
    """As :class:`~nas_llm.sparsity.magnitude.Magnitude`."""

    title: ClassVar[str] = "magnitude"

    @property
    def method(self) -> Magnitude:
        return Magnitude(self.share, self.pattern, self.targets)


@dataclass(frozen=True)
class WandaBaseline(SparsityBaseline):
    """As :class:`~nas_llm.sparsity.wanda.Wanda`."""

    title: ClassVar[str] = "Wanda"

    @property
    def method(self) -> Wanda:
        return Wanda(self.share, self.pattern, self.targets)


@dataclass(frozen=True)
class SparseGPTBaseline(SparsityBaseline):
    """``block_size`` and ``damping`` as those of :class:`~nas_llm.sparsity.sparsegpt.SparseGPT`."""

    title: ClassVar[str] = "SparseGPT"

    block_size: int = 128
    damping: float = 0.01

    @property
    def method(self) -> SparseGPT:
        return SparseGPT(self.share, self.pattern, self.targets, self.block_size, self.damping)


def refuse_targets(supernet: Supernet, method: Sparsity) -> None:
    """Raises:
    ValueError: targets that match nothing, are quantised, or have a width that the pattern does not divide.
    """
    with named_as_baseline("sparsity"):
        for projection in chosen(supernet, method):
            _ = projection.parameter


def sparse(supernet: Supernet, method: Sparsity, batches: Batches, name: str) -> Pruned:
    """Makes the network sparse in place. Raises as :class:`nas_llm.sparsity.Sparsity`."""
    needs_data = not isinstance(method, Magnitude)
    with named_as_baseline("sparsity"):
        counts = method(supernet, batches() if needs_data else ())
    full, model = supernet.largest(), supernet.release()
    zeros, whole = counts.overall, zeros_of_model(model).overall
    amount = Amount.of(method.sparsity, method.pattern)
    share = (
        f"{amount.group - amount.kept} of every {amount.group}" if method.pattern else f"{zeros.sparsity:.1%} of the"
    )
    summary = (
        f"{share} weights of {len(counts.by_name)} linear modules became zero by {name}; {whole.nonzero:,} of its "
        f"{whole.size:,} parameters are not."
    )
    return Pruned(model, summary, counts.to_dict(), full)
