"""Weights as integers: asymmetric, uniform, one scale and one zero point per group of input channels.

A weight w (out, in) of a group with the scale s and the zero point z (Frantar et al., "GPTQ", 2023, section 4; SQFT,
paper 2, section 3):

    q = clamp(round(w / s) + z, 0, 2^n - 1),    w~ = s (q - z),    n bits, 0 <= z <= 2^n - 1, all of them integers but s

Zero is exactly representable, q = z, because the range of a group is widened to hold it: exact zeros of a sparse weight
stay exact zeros.

``fake_quantize`` is w -> w~ with the straight-through estimator, for training behind frozen scales and zero points
(QA-SparsePEFT); ``requantize`` gives the codes of a weight on the grid of another one. Both give the codes of a weight
that was quantised before back, however they were found (round to nearest or GPTQ).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

BITS = range(2, 9)


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """``codes``: (out, in) uint8; ``scales``: (out, in / group_size) floating, above 0; ``zeros``: (out, in /
    group_size) uint8; codes and zeros lie in [0, 2 ** bits - 1].

    Raises:
        ValueError: ``bits`` outside of 2 to 8, or shapes that do not fit together.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int
    group_size: int

    def __post_init__(self) -> None:
        refuse_bits(self.bits)
        out, width = self.codes.shape
        groups = (out, width // self.group_size)
        fits = self.scales.shape == self.zeros.shape == groups and width % self.group_size == 0
        if not fits:
            raise ValueError(
                f"codes of the shape {(out, width)} in groups of {self.group_size} take scales and zeros of the shape "
                f"{groups}, these are {tuple(self.scales.shape)} and {tuple(self.zeros.shape)}"
            )

    @property
    def shape(self) -> torch.Size:
        """(out, in)."""
        return self.codes.shape

    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        """s (q - z), (out, in), computed in ``dtype``; None: that of the scales."""
        scales = self.scales if dtype is None else self.scales.to(dtype)
        grouped = self.codes.unflatten(1, (-1, self.group_size)).to(scales.dtype)  # whole numbers, exact in any dtype
        return grouped.sub_(self.zeros.unsqueeze(-1)).mul_(scales.unsqueeze(-1)).flatten(1)


def refuse_bits(bits: int, setting: str = "bits") -> None:
    """Raises a ValueError for ``bits`` outside of 2 to 8; ``setting`` is the key it came from."""
    if bits not in BITS:
        raise ValueError(f"{setting}={bits}: allowed are {BITS[0]} to {BITS[-1]} bits")


def grid(groups: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scales and zero points that cover the least and the greatest value of each group, and 0.

    Args:
        groups: (..., group size), floating.
        bits: of a code.
        dtype: of the scales; codes are to be computed with the scales as they are stored.

    Returns:
        scales (...) in ``dtype``, zeros (...) uint8. A group of zeros alone has the scale 1.
    """
    values, last = groups.float(), 2**bits - 1
    least, greatest = values.amin(-1).clamp(max=0), values.amax(-1).clamp(min=0)
    exact = (greatest - least) / last
    scales = torch.where(exact > 0, exact.to(dtype).clamp(min=torch.finfo(dtype).tiny), 1.0).to(dtype)
    zeros = (-least / scales.float()).round_().clamp_(0, last).to(torch.uint8)
    return scales, zeros


def round_to_codes(weight: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> Tensor:
    """clamp(round(w / s) + z, 0, 2^n - 1) as uint8, element by element: the three shapes broadcast."""
    return _unclamped(weight, scales, zeros).clamp_(0, 2**bits - 1).to(torch.uint8)


def requantize(weight: Tensor, like: QuantizedWeight) -> QuantizedWeight:
    """The codes of ``weight`` (out, in) with the scales and zero points of ``like``, that is of a merged weight.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    if weight.shape != like.shape:
        raise ValueError(f"a weight of the shape {tuple(weight.shape)} on the grid of one of {tuple(like.shape)}")
    if not weight.isfinite().all():
        raise ValueError("the weight holds values that are not finite, so that it has no codes")
    grouped = weight.unflatten(1, (-1, like.group_size))
    codes = round_to_codes(grouped, like.scales.unsqueeze(-1), like.zeros.unsqueeze(-1), like.bits)
    return replace(like, codes=codes.flatten(1))


def fake_quantize(weight: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> Tensor:
    """w~ = s (q - z) of ``weight`` (out, in), in its dtype; scales and zeros (out, groups) are frozen.

    The gradient is the straight-through estimator's: that of w~ passes to ``weight`` unchanged where round(w / s) + z
    lies in [0, 2^n - 1]; outside, where the clamp holds w~ fixed, it is zero.

    Raises:
        ValueError: the groups do not divide the width, or ``bits`` are outside of 2 to 8.
    """
    refuse_bits(bits)
    out, width = weight.shape
    groups = scales.shape[-1]
    if scales.shape != zeros.shape or scales.shape[0] != out or width % groups:
        raise ValueError(
            f"a weight of the shape {(out, width)} takes scales and zeros of the shape (out, groups), groups a divisor "
            f"of in; these are {tuple(scales.shape)} and {tuple(zeros.shape)}"
        )
    return _StraightThrough.apply(weight, scales, zeros, bits)


class _StraightThrough(torch.autograd.Function):
    """Keeps one boolean per weight for the backward pass."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> Tensor:
        s, z = scales.unsqueeze(-1), zeros.unsqueeze(-1)
        found = _unclamped(weight.unflatten(1, (scales.shape[-1], -1)), s, z)
        last = 2**bits - 1
        ctx.save_for_backward(((found >= 0) & (found <= last)).flatten(1))
        return found.clamp_(0, last).sub_(z).mul_(s).flatten(1).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None


def _unclamped(weight: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """round(w / s) + z, in float32 or better: lower precisions round the quotient to another integer."""
    precision = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(precision) / scales.to(precision)).round_().add_(zeros)
