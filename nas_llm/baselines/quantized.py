"""The methods of ``quantization/`` as baselines: weights of the blocks become integers, every shape stays.

``bits``, ``group_size`` and ``targets`` are those of the methods; how each rounds is said in its own file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nas_llm.baselines import Batches, Pruned
from nas_llm.baselines.settings import named_as_baseline
from nas_llm.models.supernet import Supernet
from nas_llm.quantization.gptq import GPTQ
from nas_llm.quantization.rtn import RoundToNearest
from nas_llm.quantization.targets import Targets, layers_to_quantize

if TYPE_CHECKING:
    from nas_llm.quantization import Quantization


@dataclass(frozen=True)
class RoundToNearestBaseline:
    """Fields as in :mod:`nas_llm.quantization`.

    Raises:
        ValueError: as :class:`~nas_llm.quantization.rtn.RoundToNearest`.
    """

    bits: int = 4
    group_size: int = 128
    targets: Targets = None

    def __post_init__(self) -> None:
        _ = self.method

    @property
    def method(self) -> RoundToNearest:
        with named_as_baseline("quantization"):
            return RoundToNearest(self.bits, self.group_size, self.targets)

    def refuse(self, supernet: Supernet) -> None:
        refuse_targets(supernet, self.targets, self.group_size)

    def __call__(self, supernet: Supernet, batches: Batches) -> Pruned:
        return quantized(supernet, self.method, batches, f"{self.bits} bits by rounding to nearest")


@dataclass(frozen=True)
class GPTQBaseline:
    """Fields as in :class:`~nas_llm.quantization.gptq.GPTQ`.

    Raises:
        ValueError: as that.
    """

    bits: int = 4
    group_size: int = 128
    targets: Targets = None
    damping: float = 0.01
    act_order: bool = False
    keep_zeros: bool = True
    block_size: int = 128

    def __post_init__(self) -> None:
        _ = self.method

    @property
    def method(self) -> GPTQ:
        with named_as_baseline("quantization"):
            return GPTQ(
                bits=self.bits,
                group_size=self.group_size,
                targets=self.targets,
                damping=self.damping,
                act_order=self.act_order,
                keep_zeros=self.keep_zeros,
                block_size=self.block_size,
            )

    def refuse(self, supernet: Supernet) -> None:
        refuse_targets(supernet, self.targets, self.group_size)

    def __call__(self, supernet: Supernet, batches: Batches) -> Pruned:
        return quantized(supernet, self.method, batches, f"{self.bits} bits by GPTQ")


def refuse_targets(supernet: Supernet, targets: Targets, group_size: int) -> None:
    """Raises:
    ValueError: as :func:`~nas_llm.quantization.targets.layers_to_quantize`.
    """
    with named_as_baseline("quantization"):
        layers_to_quantize(supernet, targets, group_size)


def quantized(supernet: Supernet, method: Quantization, batches: Batches, how: str) -> Pruned:
    """Quantises the network in place. Raises as :class:`nas_llm.quantization.Quantization`."""
    needs_data = not isinstance(method, RoundToNearest)
    with named_as_baseline("quantization"):
        report = method(supernet, batches() if needs_data else ())
    mib = f"{report.bytes_before / 2**20:.2f} to {report.bytes_after / 2**20:.2f} MiB"
    summary = (
        f"The weights of {len(report.layers)} linear modules became integers of {how}; with scales and zero points "
        f"they went from {mib}."
    )
    return Pruned(supernet.release(), summary, report.to_dict(), supernet.largest())
