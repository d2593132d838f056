"""A linear layer whose weight is held as packed integers and dequantised where it is used.

A subclass of nn.Linear, so that transformers, peft and the table of families take it for what it is. Its ``weight`` is
computed, not a parameter: reading it goes on working, assigning it is refused, writing into it writes a copy. Its
buffers have the names and the layout of compressed-tensors' ``pack-quantized`` format, so that its state dict is a file
of that format:

    weight_packed      (out, words) int32, codes as models/bit_packing.py lays them: 2, 4 or 8 bits each
    weight_scale       (out, in / group) floating, cast with the model (``.to(dtype)``); all others stay as they are
    weight_zero_point  (words, in / group) int32, packed along the outputs
    weight_shape       (2,) int64: out, in

A forward pass makes the dense weight, multiplies and forgets it; the backward pass makes it again, so that training
adapters on it holds the dense weight of one layer at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nas_llm.models.bit_packing import pack, packed_width, unpack
from nas_llm.models.quantized_weight import QuantizedWeight, refuse_bits


class QuantizedLinear(nn.Linear):
    """y = x W~^T + b, W~ (out, in) the dequantised weight in the dtype of x.

    Raises:
        ValueError: bits outside of 2 to 8, or a group size that does not divide the width.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    weight_shape: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int,
        group_size: int,
        bias: nn.Parameter | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which makes the parameter that this one does without
        refuse_bits(bits)
        if group_size < 1 or in_features % group_size:
            raise ValueError(f"group_size={group_size} does not divide the width {in_features}")
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group_size = bits, group_size
        groups = in_features // group_size
        words = {"dtype": torch.int32, "device": device}
        self.register_buffer("weight_packed", torch.zeros(out_features, packed_width(in_features, bits), **words))  # type: ignore[arg-type]
        self.register_buffer("weight_scale", torch.ones(out_features, groups, dtype=dtype, device=device))
        self.register_buffer("weight_zero_point", torch.zeros(packed_width(out_features, bits), groups, **words))  # type: ignore[arg-type]
        self.register_buffer("weight_shape", torch.tensor([out_features, in_features]))
        self.register_parameter("bias", bias)

    @classmethod
    def of(cls, quantized: QuantizedWeight, bias: nn.Parameter | None = None) -> QuantizedLinear:
        """The layer of a quantised weight; ``bias`` (out,) is taken as it is."""
        out, width = quantized.shape
        made = cls(width, out, bits=quantized.bits, group_size=quantized.group_size, bias=bias, device="meta")
        made.weight_packed = pack(quantized.codes, quantized.bits)
        made.weight_scale = quantized.scales
        made.weight_zero_point = pack(quantized.zeros.T, quantized.bits).T.contiguous()
        made.weight_shape = torch.tensor([out, width])
        return made

    @property
    def quantized(self) -> QuantizedWeight:
        """The codes, scales and zero points, unpacked."""
        codes = unpack(self.weight_packed, self.bits, self.in_features)
        zeros = unpack(self.weight_zero_point.T, self.bits, self.out_features).T
        return QuantizedWeight(codes, self.weight_scale, zeros, self.bits, self.group_size)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dequantised weight (out, in), made anew, in the dtype of the scales: changing it changes nothing."""
        return self.quantized.dequantized()

    @property
    def num_weights(self) -> int:
        """Weights that the codes stand for, without the bias."""
        return self.out_features * self.in_features

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed codes, scales and zero points, without the bias."""
        return sum(held.nbytes for held in (self.weight_packed, self.weight_scale, self.weight_zero_point))

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        return _Product.apply(input.to(dtype), None if self.bias is None else self.bias.to(dtype), self)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"bits={self.bits}, group_size={self.group_size}"
        )


class _Product(torch.autograd.Function):
    """A linear layer that keeps no dense weight between its forward and its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: QuantizedLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return nn.functional.linear(x, layer.weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        wants_x, wants_bias, _ = ctx.needs_input_grad
        to_x = gradient @ ctx.layer.weight.to(ctx.dtype) if wants_x else None
        to_bias = gradient.flatten(0, -2).sum(0) if wants_bias else None
        return to_x, to_bias, None


def quantized_modules(model: nn.Module) -> dict[str, QuantizedLinear]:
    """Every quantised layer of a model by its name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
