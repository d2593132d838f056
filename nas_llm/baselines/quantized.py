"""The methods of ``quantization/`` as baselines: weights of the blocks become integers, every shape stays.

The settings are those of the methods (``quantization/settings.py``); how each rounds is said in its own file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nas_llm.baselines import Batches, Pruned
from nas_llm.baselines.settings import named_as_baseline
from nas_llm.models.supernet import Supernet
from nas_llm.quantization.gptq import GPTQ
from nas_llm.quantization.rtn import RoundToNearest
from nas_llm.quantization.settings import GPTQSettings, QuantizationSettings
from nas_llm.quantization.targets import layers_to_quantize

if TYPE_CHECKING:
    from nas_llm.quantization import Quantization


@dataclass(frozen=True)
class RoundToNearestBaseline(QuantizationSettings):
    """As :class:`~nas_llm.quantization.rtn.RoundToNearest`."""

    def __post_init__(self) -> None:
        with named_as_baseline("quantization"):
            super().__post_init__()

    def refuse(self, supernet: Supernet) -> None:
        refuse_targets(supernet, self)

    def __call__(self, supernet: Supernet, batches: Batches) -> Pruned:
        method = RoundToNearest(**vars(self))
        return quantized(supernet, method, batches, f"{self.bits} bits by rounding to nearest")


@dataclass(frozen=True)
class GPTQBaseline(GPTQSettings):
    """As :class:`~nas_llm.quantization.gptq.GPTQ`."""

    def __post_init__(self) -> None:
        with named_as_baseline("quantization"):
            super().__post_init__()

    def refuse(self, supernet: Supernet) -> None:
        refuse_targets(supernet, self)

    def __call__(self, supernet: Supernet, batches: Batches) -> Pruned:
        return quantized(supernet, GPTQ(**vars(self)), batches, f"{self.bits} bits by GPTQ")


def refuse_targets(supernet: Supernet, settings: QuantizationSettings) -> None:
    """Raises:
    ValueError: as :func:`~nas_llm.quantization.targets.layers_to_quantize`.
    """
    with named_as_baseline("quantization"):
        layers_to_quantize(supernet, settings.targets, settings.group_size)


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
