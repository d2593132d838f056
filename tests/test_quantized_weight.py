"""Integers of weights: packing, grids, the straight-through estimator, each against a slow or another oracle."""

from __future__ import annotations

import math

import pytest
import torch

from nas_llm.models.bit_packing import pack, packed_width, stored_bits, unpack
from nas_llm.models.quantized_weight import BITS, QuantizedWeight, fake_quantize, grid, requantize
from nas_llm.quantization.rtn import rounded

EVERY_BITS = list(BITS)


def random_weight(out: int = 7, width: int = 24, seed: int = 0, sparsity: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, width, generator=generator)
    return weight * (torch.rand(out, width, generator=generator) >= sparsity)


def loop(weight: torch.Tensor, bits: int, group_size: int) -> tuple[list[list[int]], list[list[float]]]:
    """Codes and weights by the definition, one number at a time, in Python's floats."""
    codes, values = [], []
    for row in weight.tolist():
        codes.append([])
        values.append([])
        for start in range(0, len(row), group_size):
            group = row[start : start + group_size]
            scale = (max(0.0, *group) - min(0.0, *group)) / (2**bits - 1)
            zero = min(max(round(-min(0.0, *group) / scale), 0), 2**bits - 1) if scale else 0
            for value in group:
                code = min(max(round(value / scale) + zero, 0), 2**bits - 1) if scale else 0
                codes[-1].append(code)
                values[-1].append(scale * (code - zero))
    return codes, values


@pytest.mark.parametrize("bits", EVERY_BITS)
@pytest.mark.parametrize("count", [1, 7, 16, 33, 64])
def test_packed_integers_come_back(bits: int, count: int) -> None:
    values = torch.randint(0, 2**bits, (5, count), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    values[0], values[1] = 0, 2**bits - 1
    packed = pack(values, bits)
    assert packed.dtype == torch.int32
    assert packed.shape == (5, packed_width(count, bits)) == (5, math.ceil(count * stored_bits(bits) / 32))
    assert torch.equal(unpack(packed, bits, count), values)


def test_a_column_of_single_words_comes_back() -> None:
    """Of few output channels: the zero points of a file, (words, groups), are read by their columns."""
    values = torch.arange(10, dtype=torch.uint8).unflatten(0, (5, 2))
    as_stored = pack(values, 4).T.contiguous()
    assert torch.equal(unpack(as_stored.T, 4, 2), values)


@pytest.mark.parametrize("bits", EVERY_BITS)
def test_the_layout_is_that_of_compressed_tensors(bits: int) -> None:
    helpers = pytest.importorskip(
        "compressed_tensors.compressors.pack_quantized.helpers",
        reason="needs the extra 'quantized': compressed-tensors",
    )
    values = torch.randint(0, 2**bits, (6, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    stored = stored_bits(bits)
    signed = (values.to(torch.int16) - 2 ** (stored - 1)).to(torch.int8)
    assert torch.equal(pack(values, bits), helpers.pack_to_int32(signed, stored))
    down = helpers.pack_to_int32(signed, stored, packed_dim=0)
    assert torch.equal(pack(values.T, bits).T, down)


@pytest.mark.parametrize("bits", EVERY_BITS)
@pytest.mark.parametrize("group_size", [24, 6, 1])
def test_round_to_nearest_equals_a_loop(bits: int, group_size: int) -> None:
    weight = random_weight().double()
    weight[0], weight[1], weight[2] = (
        0,
        weight[1].abs() + 1,
        -weight[2].abs() - 1,
    )  # without range, and on one side of 0
    quantized = rounded(weight.float(), bits, group_size)
    codes, values = loop(weight.float().double(), bits, group_size)
    # a quotient that lies half-way in one precision and not in the other may go either way: none may be further off
    off = quantized.codes.int() - torch.tensor(codes)
    assert off.abs().max() <= 1
    assert (off != 0).float().mean() < 0.01
    difference = (quantized.dequantized().double() - torch.tensor(values)).abs()
    assert difference[off == 0].max() <= 1e-6 * weight.abs().max()


@pytest.mark.parametrize("bits", EVERY_BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_exact_zeros_stay_exact_zeros(bits: int, dtype: torch.dtype) -> None:
    weight = random_weight(sparsity=0.5).to(dtype)
    weight[3] = weight[3].abs() + 5 * (weight[3] != 0)  # far from zero, on one side of it
    weight[4] = 0
    quantized = rounded(weight, bits, 8)
    assert int((weight == 0).sum()) > 24
    assert torch.equal(quantized.dequantized()[weight == 0], torch.zeros_like(weight[weight == 0]))
    assert quantized.scales.dtype == dtype
    assert (quantized.scales > 0).all()
    assert max(quantized.codes.max(), quantized.zeros.max()) <= 2**bits - 1
    assert quantized.zeros.shape == (7, 3)


@pytest.mark.parametrize("bits", EVERY_BITS)
def test_no_weight_is_further_from_its_integer_than_half_a_step(bits: int) -> None:
    weight = random_weight()
    quantized = rounded(weight, bits, 8)
    step = quantized.scales.repeat_interleave(8, 1)
    # the rounded zero point moves the grid by at most half a step, which the ends of a range may be off beside
    assert ((quantized.dequantized() - weight).abs() <= step * 1.0001).all()
    assert ((quantized.dequantized() - weight).abs() <= step * 0.5001).float().mean() > 0.8


def test_scales_that_a_precision_cannot_hold_do_not_become_zero() -> None:
    weight = torch.full((1, 4), 6e-8, dtype=torch.float16)
    quantized = rounded(weight, 8, 4)
    assert quantized.dequantized().isfinite().all()


@pytest.mark.parametrize("bits", EVERY_BITS)
def test_fake_quantisation_is_the_definition_and_its_gradient_the_straight_through_estimator(bits: int) -> None:
    base = random_weight().double()
    scales, zeros = grid(base.unflatten(1, (-1, 8)), bits, torch.float32)
    weight = (base * 1.5).requires_grad_()  # some of it lies outside of the grid
    found = fake_quantize(weight, scales, zeros, bits)
    s, z = scales.double().repeat_interleave(8, 1), zeros.double().repeat_interleave(8, 1)
    rounded_ = torch.round(weight.detach() / s) + z
    assert torch.equal(found.detach(), s * (rounded_.clamp(0, 2**bits - 1) - z))
    upstream = torch.randn(base.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found.backward(upstream)
    inside = (rounded_ >= 0) & (rounded_ <= 2**bits - 1)
    assert 0 < int((~inside).sum()) < inside.numel()
    assert torch.equal(weight.grad, torch.where(inside, upstream, 0.0))


@pytest.mark.parametrize("bits", EVERY_BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_codes_come_back_from_their_weights(bits: int, dtype: torch.dtype) -> None:
    """Not only nearest ones: those of GPTQ carry its error compensation."""
    quantized = rounded(random_weight().to(dtype), bits, 8)
    codes = torch.randint(0, 2**bits, (7, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    chosen = QuantizedWeight(codes, quantized.scales, quantized.zeros, bits, 8)
    weight = chosen.dequantized(torch.float32)
    assert torch.equal(requantize(weight, chosen).codes, codes)
    assert torch.equal(fake_quantize(weight, chosen.scales, chosen.zeros, bits), weight)
    moved = requantize(weight + 0.6 * chosen.scales.float().repeat_interleave(8, 1), chosen)
    assert torch.equal(moved.codes.int(), (codes.int() + 1).clamp(max=2**bits - 1))
    assert moved.scales is chosen.scales


def test_what_does_not_fit_is_refused() -> None:
    quantized = rounded(random_weight(), 4, 8)
    with pytest.raises(ValueError, match="bits=9: allowed are 2 to 8 bits"):
        QuantizedWeight(quantized.codes, quantized.scales, quantized.zeros, 9, 8)
    with pytest.raises(ValueError, match=r"take scales and zeros of the shape \(7, 6\)"):
        QuantizedWeight(quantized.codes, quantized.scales, quantized.zeros, 4, 4)
    with pytest.raises(ValueError, match=r"shape \(7, 16\) on the grid of one of \(7, 24\)"):
        requantize(random_weight()[:, :16], quantized)
    with pytest.raises(ValueError, match="not finite"):
        requantize(random_weight() / 0, quantized)
    with pytest.raises(ValueError, match="groups a divisor of in"):
        fake_quantize(random_weight(), quantized.scales[:, :1].repeat(1, 5), quantized.zeros, 4)
    with pytest.raises(ValueError, match="bits=1"):
        fake_quantize(random_weight(), quantized.scales, quantized.zeros, 1)
