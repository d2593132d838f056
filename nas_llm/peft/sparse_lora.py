"""SparsePEFT: adapters that keep the zeros of a sparse weight (SQFT, paper 2 section 4).

    M = 1[W != 0];  y = (W + scaling (B A) * M) x

The masked product is added to the weight first, so that one dense product with x is taken instead of two. Dropout, as
the product is no longer taken by itself, drops whole input channels of the adapter, the same for every token of a
forward pass, and scales the others: E[y] stays.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.supernet import Supernet
from nas_llm.peft.adapters import NAME, base_of, factors, lora_layers
from nas_llm.peft.lora import Lora


class SparseLoraLinear(LoraLinear):
    """peft's layer with another forward pass; ``merge`` keeps every zero."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged:
            return self.base_layer(x, *args, **kwargs)
        base, weight = base_of(self), self.effective_weight()
        x = x.to(weight.dtype) if not torch.is_autocast_enabled(x.device.type) else x
        return F.linear(x, weight.T if self.fan_in_fan_out else weight, base.bias)

    def effective_weight(self) -> Tensor:
        """What x is multiplied with, of the base weight's shape."""
        a, b = with_dropped_channels(self)
        return masked_sum(base_of(self).weight, a, b, self.scaling[NAME], transposed=self.fan_in_fan_out)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What merging adds: nothing where the weight is zero."""
        return super().get_delta_weight(adapter) * (base_of(self).weight != 0)


def with_dropped_channels(layer: LoraLinear) -> tuple[Tensor, Tensor]:
    """A and B; while training with dropout, A without some of its input channels."""
    a, b = factors(layer)
    dropout = layer.lora_dropout[NAME]
    if not (layer.training and isinstance(dropout, torch.nn.Dropout)):
        return a, b
    return a * dropout(torch.ones(a.shape[1], dtype=a.dtype, device=a.device)), b


def masked_sum(
    weight: Tensor, a: Tensor, b: Tensor, scaling: float, *, transposed: bool = False, keep_zeros: bool = True
) -> Tensor:
    """W + scaling (B A) where W is not zero, and zero elsewhere (or the sum everywhere, without ``keep_zeros``).

    W is (out, in), or (in, out) ``transposed``; A is (rank, in) and B (out, rank).
    """
    first, second = (a.T, b.T) if transposed else (b, a)
    total = torch.addmm(weight, first.to(weight.dtype), second.to(weight.dtype), alpha=scaling)
    return total.mul_(weight != 0) if keep_zeros else total  # in place: torch.where takes twice as long


@dataclass(frozen=True)
class SparseLora(Lora):
    """Adapters that keep the zeros of the weights they stand beside; settings as of ``Lora``.

    Raises:
        ValueError: ``use_dora`` (its norms are of the dense sum) or ``embeddings``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_dora:
            raise ValueError("peft.use_dora=true does not go with masked adapters: set it to false, or peft=lora")
        if self.embeddings:
            raise ValueError("peft.embeddings=true does not go with masked adapters: set it to false, or peft=lora")

    def refuse_base(self, supernet: Supernet, to_quantize: Collection[nn.Module] = ()) -> None:
        """Raises ValueError where a weight is quantised: the sum would have no codes."""
        for target in self.targets(supernet):
            if isinstance(target.module, QuantizedLinear) or target.module in to_quantize:
                raise ValueError(
                    f"peft=sparse_peft: {target.name} is quantised, and adapters of that kind could not be merged into "
                    "it; set peft=qa_sparse_peft, or quantization=none"
                )

    def __call__(self, supernet: Supernet) -> None:
        """Raises ValueError as ``refuse_base``."""
        self.refuse_base(supernet)
        self.add(supernet)
        self.convert(supernet.model)

    def convert(self, model: nn.Module) -> None:
        for _, layer in lora_layers(model):
            assert type(layer) is LoraLinear
            layer.__class__ = SparseLoraLinear
