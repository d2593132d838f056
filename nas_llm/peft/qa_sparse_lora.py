"""QA-SparsePEFT: adapters that are quantised with the weight while they train (SQFT, paper 2 section 4).

    q = clamp(round((W + scaling (B A) * M) / s) + z, 0, 2^n - 1);  W~ = s (q - z);  y = W~ x

W = s (q0 - z) are the dequantised codes of the base, so that what GPTQ's error compensation found is where training
begins: with B = 0, W~ is W. Scales and zero points stay those of the base; M = 1[W != 0] keeps its zeros. Gradients go
straight through the rounding. Merging takes the codes q of the trained sum: nothing changes but integers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.quantized_weight import QuantizedWeight, fake_quantize, requantize
from nas_llm.models.supernet import Supernet
from nas_llm.peft.adapters import NAME, base_of, lora_layers
from nas_llm.peft.sparse_lora import SparseLora, SparseLoraLinear, masked_sum, with_dropped_channels


class QaSparseLoraLinear(LoraLinear):
    """peft's layer around a quantised one, with another forward pass."""

    keep_zeros: bool

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = base_of(self)
        if self.disable_adapters or self.merged:
            return base(x, *args, **kwargs)
        return F.linear(x, self.effective_weight().to(x.dtype), base.bias)

    def effective_weight(self) -> Tensor:
        """W~ (out, in): what x is multiplied with."""
        quantized: QuantizedWeight = base_of(self).quantized
        return fake_quantize(self.summed(quantized), quantized.scales, quantized.zeros, quantized.bits)

    def summed(self, quantized: QuantizedWeight) -> Tensor:
        """W + scaling (B A) * M (out, in), in the adapters' precision."""
        a, b = with_dropped_channels(self)
        return masked_sum(quantized.dequantized(a.dtype), a, b, self.scaling[NAME], keep_zeros=self.keep_zeros)

    def merged_base(self) -> QuantizedLinear:
        """The base with the codes of the sum; scales and zero points are its own."""
        quantized: QuantizedWeight = base_of(self).quantized
        return QuantizedLinear.of(requantize(self.summed(quantized), quantized), base_of(self).bias)


@dataclass(frozen=True)
class QaSparseLora(SparseLora):
    """Adapters that are quantised with the weights they stand beside; weights that are not quantised get masked ones.

    Args:
        keep_zeros: weights that the base has at zero stay zero.

    Raises:
        ValueError: as ``SparseLora``; when called, none of the weights is quantised.
    """

    keep_zeros: bool = True

    def refuse_base(self, supernet: Supernet, to_quantize: Collection[nn.Module] = ()) -> None:
        """Raises ValueError where none of the weights is quantised."""
        modules = [target.module for target in self.targets(supernet)]
        if not any(isinstance(module, QuantizedLinear) or module in to_quantize for module in modules):
            raise ValueError(
                "peft=qa_sparse_peft: none of the matrices is quantised; add quantization=gptq (or rtn), or set "
                "peft=sparse_peft"
            )

    def convert(self, model: nn.Module) -> None:
        for _, layer in lora_layers(model):
            assert type(layer) is LoraLinear
            if isinstance(base_of(layer), QuantizedLinear):
                layer.__class__ = QaSparseLoraLinear
                vars(layer)["keep_zeros"] = self.keep_zeros
            else:
                layer.__class__ = SparseLoraLinear
