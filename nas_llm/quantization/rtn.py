"""Round to nearest: every weight becomes the nearest integer of its group's grid; no data needed.

Per group: s = (max(w, 0) - min(w, 0)) / (2^n - 1), z = round(-min(w, 0) / s), q = clamp(round(w / s) + z, 0, 2^n - 1).
W: (out, in); groups are neighbours along the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.quantized_weight import QuantizedWeight, grid, round_to_codes
from nas_llm.models.supernet import Supernet
from nas_llm.quantization.report import LayerReport, QuantizationReport
from nas_llm.quantization.settings import QuantizationSettings
from nas_llm.quantization.targets import layers_to_quantize

if TYPE_CHECKING:
    from nas_llm.quantization import Batches


@dataclass(frozen=True)
class RoundToNearest(QuantizationSettings):
    """Fields as in :mod:`nas_llm.quantization.settings`. Raises as :class:`QuantizationSettings`."""

    @torch.no_grad()
    def __call__(self, supernet: Supernet, batches: Batches = ()) -> QuantizationReport:
        """Raises as :class:`nas_llm.quantization.Quantization`; ``batches`` are not looked at."""
        found = {}
        for name, module in layers_to_quantize(supernet, self.targets, self.group_size).items():
            weight = module.weight.detach()
            layer = QuantizedLinear.of(rounded(weight, self.bits, self.group_size), module.bias)
            found[name] = LayerReport.of(weight, layer)
            supernet.quantize_module(name, layer)
        return QuantizationReport(found)


def rounded(weight: Tensor, bits: int, group_size: int) -> QuantizedWeight:
    """``weight`` (out, in), floating, on the grids of its groups; the scales have its dtype."""
    groups = weight.unflatten(1, (-1, group_size))
    scales, zeros = grid(groups, bits, weight.dtype)
    codes = round_to_codes(groups, scales.unsqueeze(-1), zeros.unsqueeze(-1), bits)
    return QuantizedWeight(codes.flatten(1), scales, zeros, bits, group_size)
