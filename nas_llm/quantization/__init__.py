"""Quantisation: linear layers of a super-network become integers, one method a file; the protocol is here.

A method is a frozen dataclass whose fields are its YAML; those that all have are in ``settings.py``. The values and the
layer that holds them are in ``models/quantized_weight.py`` and ``models/quantized_linear.py``, because files and
sub-networks know them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from nas_llm.models.quantized_linear import QuantizedLinear, quantized_modules
from nas_llm.models.quantized_weight import QuantizedWeight, fake_quantize, requantize
from nas_llm.quantization.report import LayerReport, QuantizationReport

if TYPE_CHECKING:
    from nas_llm.models.supernet import Supernet

__all__ = [
    "Batches",
    "LayerReport",
    "Quantization",
    "QuantizationReport",
    "QuantizedLinear",
    "QuantizedWeight",
    "fake_quantize",
    "quantized_modules",
    "requantize",
]

Batches = Iterable[Mapping[str, Tensor]]


class Quantization(Protocol):
    """Replaces linear layers of the whole network by quantised ones, in place."""

    def __call__(self, supernet: Supernet, batches: Batches) -> QuantizationReport:
        """What became of each target, by the name of its module.

        Raises:
            ValueError: targets that match nothing, are no linear layers, are tied to others or are quantised already; a
                group size that does not divide a width, weights that are not finite, no batch where the method looks
                at data. The first of them; nothing has been changed then, but where a network overflows on its way.
        """
