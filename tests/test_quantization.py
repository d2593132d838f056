"""Round to nearest and GPTQ on networks: against slow oracles, errors on what layers read, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from test_block_walk import calibration, plain_hessians
from test_families import batch, build, logits_of
from torch import nn

from nas_llm.models.block_walk import walk
from nas_llm.models.input_statistics import Hessian
from nas_llm.models.quantized_linear import QuantizedLinear, quantized_modules
from nas_llm.models.quantized_weight import fake_quantize, grid, requantize
from nas_llm.quantization.gptq import GPTQ
from nas_llm.quantization.rtn import RoundToNearest, rounded

SMALL = {"bits": 3, "group_size": 8}


def problem(out: int = 5, width: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and a Hessian of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(64, width, generator=generator) @ torch.randn(width, width, generator=generator)
    return torch.randn(out, width, generator=generator), 2 * inputs.T @ inputs


def brain_surgeon(
    weight: torch.Tensor, hessian: torch.Tensor, method: GPTQ, order: list[int] | None = None
) -> torch.Tensor:
    """Codes by optimal brain quantisation in a fixed order: one row and one column at a time, the inverse of the
    Hessian of the columns that are left made anew for each, in float64."""
    width, bits, size = weight.shape[1], method.bits, method.group_size
    damped = hessian.double() + method.damping * hessian.double().diagonal().mean() * torch.eye(width)
    codes = torch.zeros(weight.shape, dtype=torch.int64)
    for row in range(weight.shape[0]):
        w = weight[row].double().clone()
        grids = [grid(w[g : g + size].float(), bits, torch.float32) for g in range(0, width, size)]
        for number, j in enumerate(order or range(width)):
            left = (order or list(range(width)))[number:]
            inverse = torch.linalg.inv(damped[left][:, left])
            if order is None and j % size == 0:
                grids[j // size] = grid(w[j : j + size].float(), bits, torch.float32)
            scale, zero = (float(value) for value in grids[j // size])
            code = min(max(round(float(w[j]) / scale) + zero, 0), 2**bits - 1)
            codes[row, j] = int(code)
            error = (w[j] - scale * (code - zero)) / inverse[0, 0]
            w[left] -= error * inverse[0]
    return codes


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block_size", [1, 8, 16, 24, 100])
def test_gptq_gives_the_codes_of_optimal_brain_quantisation_in_order(bits: int, block_size: int) -> None:
    weight, hessian = problem()
    method = GPTQ(bits, 8, block_size=block_size)
    found = method.quantize(weight, hessian)
    assert torch.equal(found.codes.long(), brain_surgeon(weight, hessian, method))
    assert not torch.equal(found.codes, rounded(weight, bits, 8).codes)


def test_gptq_by_activation_order_gives_the_codes_of_that_order() -> None:
    weight, hessian = problem(seed=1)
    order = hessian.diagonal().argsort(descending=True).tolist()
    assert order != list(range(24))
    method = GPTQ(3, 8, act_order=True, block_size=8)
    found = method.quantize(weight, hessian)
    assert torch.equal(found.codes.long(), brain_surgeon(weight, hessian, method, order))
    scales, zeros = grid(weight.unflatten(1, (-1, 8)), 3, torch.float32)  # of the groups as they lie
    assert torch.equal(found.scales, scales)
    assert torch.equal(found.zeros, zeros)


def output_error(weight: torch.Tensor, other: torch.Tensor, hessian: torch.Tensor) -> float:
    return float(((weight - other) @ hessian * (weight - other)).sum())


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_costs_the_output_less_than_rounding(bits: int, act_order: bool) -> None:
    weight, hessian = problem(out=16, width=48)
    found = GPTQ(bits, 16, act_order=act_order).quantize(weight, hessian).dequantized()
    nearest = rounded(weight, bits, 16).dequantized()
    assert output_error(weight, found, hessian) < 0.7 * output_error(weight, nearest, hessian)
    assert torch.equal(weight, problem(out=16, width=48)[0])  # not changed


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_keeps_exact_zeros_unless_told_otherwise(act_order: bool) -> None:
    weight, hessian = problem(out=16, width=48)
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5] = 0
    method = GPTQ(4, 16, act_order=act_order)
    found = method.quantize(weight, hessian).dequantized()
    assert torch.equal((found == 0) | (weight != 0), torch.ones_like(weight, dtype=torch.bool))
    nearest = rounded(weight, 4, 16).dequantized()
    assert output_error(weight, found, hessian) < output_error(weight, nearest, hessian)
    free = GPTQ(4, 16, act_order=act_order, keep_zeros=False).quantize(weight, hessian).dequantized()
    assert int((free[weight == 0] != 0).sum()) > 20


def test_channels_that_are_never_active_are_rounded_to_the_nearest() -> None:
    weight, hessian = problem()
    hessian[:, 3] = hessian[3] = 0
    found = GPTQ(4, 8).quantize(weight, hessian)
    assert torch.equal(found.codes[:, 3], rounded(weight, 4, 8).codes[:, 3]) or found.dequantized().isfinite().all()
    silent = GPTQ(4, 8).quantize(weight, torch.zeros_like(hessian))
    assert torch.equal(silent.codes, rounded(weight, 4, 8).codes)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_gptq_quantises_every_block_on_what_the_quantised_blocks_before_it_write(name: str) -> None:
    supernet, model = build(name), copy.deepcopy(build(name).model)
    method = GPTQ(4, 8)
    report = method(supernet, calibration())
    for module_name, layer in quantized_modules(supernet.model).items():
        block = next(i for i, b in enumerate(supernet.blocks) if any(m is layer for m in b.modules()))
        assert report.layers[module_name].bits == 4
        dense = model.get_submodule(module_name)
        if not any(name_.endswith("done") for name_ in vars(dense)):
            # the oracle: whole passes through the network whose earlier blocks are quantised
            names = [
                n
                for n, m in quantized_modules(supernet.model).items()
                if any(m is inner for inner in supernet.blocks[block].modules())
            ]
            hessians = plain_hessians(model, names)
            for n in names:
                wanted = model.get_submodule(n)
                found = method.quantize(wanted.weight.detach(), hessians[n].float())
                ours = supernet.model.get_submodule(n)
                same = (found.codes == ours.quantized.codes).float().mean()
                assert same > 0.995, (n, same)  # sums in another order: a quotient half-way may fall to the other side
                wanted.weight.data.copy_(ours.weight)
                wanted.done = True
    assert torch.allclose(logits_of(supernet.model, batch()), logits_of(model, batch()), atol=1e-4)


def test_gptqs_network_is_nearer_to_the_dense_one_than_roundings() -> None:
    dense, gptq, rtn = build("llama"), build("llama"), build("llama")
    reports = GPTQ(3, 16)(gptq, calibration()), RoundToNearest(3, 16)(rtn, ())
    logits = logits_of(dense.model, batch())
    errors = [(logits_of(s.model, batch()) - logits).square().mean() for s in (gptq, rtn)]
    assert errors[0] < errors[1]
    first = [next(iter(report.layers.values())) for report in reports]
    assert first[0].output_error is not None
    assert first[0].weight_error > first[1].weight_error  # it trades the one error for the other
    assert first[1].output_error is None
    hessian = next(walk(build("llama"), calibration())).collect(Hessian)["model.layers.0.self_attn.q_proj"].matrix
    weight = dense.model.model.layers[0].self_attn.q_proj.weight
    after = gptq.model.model.layers[0].self_attn.q_proj.weight
    expected = (output_error(weight, after, hessian) / float((weight @ hessian * weight).sum())) ** 0.5
    assert first[0].output_error == pytest.approx(expected, rel=1e-3)


def test_fake_quantisation_begins_at_gptqs_codes_and_requantising_gives_them_back() -> None:
    """The compensation of errors is kept: the codes are not those of rounding the dense weights."""
    supernet, dense = build("llama"), build("llama")
    GPTQ(4, 8)(supernet, calibration())
    differ = 0
    for name, layer in quantized_modules(supernet.model).items():
        held = layer.quantized
        base = held.dequantized(torch.float32)
        delta = torch.zeros_like(base, requires_grad=True)
        trained = fake_quantize(base + delta, held.scales, held.zeros, held.bits)
        assert torch.equal(trained, base)
        assert torch.equal(requantize(base + delta.detach(), held).codes, held.codes)
        trained.sum().backward()
        assert torch.equal(delta.grad, torch.ones_like(base))  # every weight lies inside of its range
        differ += int((held.codes != rounded(dense.model.get_submodule(name).weight.detach(), 4, 8).codes).sum())
    assert differ > 100


def test_the_report_counts_bytes_weights_and_zeros() -> None:
    supernet = build("llama")
    weight = supernet.model.model.layers[1].mlp.up_proj.weight
    weight.data[:, ::2] = 0
    report = RoundToNearest(4, 8, targets=["layers.1.mlp.up_proj"])(supernet)
    (layer,) = report.layers.values()
    held = supernet.model.model.layers[1].mlp.up_proj
    assert type(held).__name__ == "ElasticQuantizedLinear"
    assert (layer.weights, layer.bytes_before, layer.bytes_after) == (3840, 3840 * 4, held.weight_bytes)
    assert 1920 <= layer.zeros < 3000
    assert report.to_dict()["bytes_after"] == held.weight_bytes
    assert 0 < layer.weight_error < 0.2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"bits": 1}, "quantization.bits=1: allowed are 2 to 8 bits"),
        ({"bits": 9}, "quantization.bits=9: allowed are 2 to 8 bits"),
        ({"group_size": 0}, "quantization.group_size=0: allowed is 1 or more"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], says: str) -> None:
    for method in (RoundToNearest, GPTQ):
        with pytest.raises(ValueError) as caught:
            method(**settings)
        assert says in str(caught.value)


def test_impossible_settings_of_gptq_are_refused() -> None:
    with pytest.raises(ValueError, match=r"quantization\.damping=-1: allowed is 0 or more"):
        GPTQ(damping=-1)
    with pytest.raises(ValueError, match=r"quantization\.block_size=0: allowed is 1 or more"):
        GPTQ(block_size=0)


def refused(method: RoundToNearest | GPTQ, supernet, batches=None) -> str:
    before = {name: value.clone() for name, value in supernet.model.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        method(supernet, calibration() if batches is None else batches)
    after = supernet.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) or not value.isfinite().all() for name, value in before.items())
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("method", [RoundToNearest, GPTQ])
def test_what_cannot_be_quantised_is_one_line_and_changes_nothing(method) -> None:
    line = refused(method(4, 32), build("llama"))
    assert "quantization.group_size=32 does not divide the width of model.layers.0.self_attn.q_proj, 48" in line
    assert "set quantization.group_size=16, which divides those of all layers" in line  # their widths are 48 and 80
    line = refused(method(4, 8, targets=["q_prj"]), build("llama"))
    assert "quantization.targets=[q_prj]: q_prj is no linear layer; allowed are q_proj, k_proj" in line
    assert "quantization.targets=[]: nothing is no linear layer" in refused(method(4, 8, targets=[]), build("llama"))
    assert "the blocks of a gpt2 hold no linear layers (nn.Linear)" in refused(method(4, 8), build("gpt2"))
    twice = build("llama")
    RoundToNearest(4, 8, targets=["up_proj"])(twice)
    assert "up_proj is quantised already, to 4 bits: set quantization=none" in refused(method(4, 8), twice)
    tied = refused(method(4, 8, targets=["lm_head"]), build("llama-tied"))
    assert "lm_head shares its weight with model.embed_tokens.weight" in tied
    broken = build("llama")
    broken.model.model.layers[2].mlp.up_proj.weight.data[0, 0] = float("nan")
    assert "weights of model.layers.2.mlp.up_proj are not finite" in refused(method(4, 8), broken)


def test_what_only_gptq_refuses() -> None:
    assert "set data.calibration_size above 0" in refused(GPTQ(4, 8), build("llama"), [])
    line = refused(GPTQ(4, 8, targets=["lm_head"]), build("llama"))
    assert "lm_head lies outside of the transformer blocks" in line
    assert "quantization=rtn" in line
    one = {"input_ids": torch.ones(1, 2, dtype=torch.long), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    line = refused(GPTQ(4, 8, damping=0), build("llama"), [one])
    assert "quantization.damping=0: the Hessian of what model.layers.0.self_attn.q_proj reads has no inverse" in line


def test_dense_layers_are_emptied_when_they_are_replaced() -> None:
    supernet = build("llama")
    dense = {name: module for name, module in supernet.model.named_modules() if isinstance(module, nn.Linear)}
    GPTQ(4, 8)(supernet, calibration())
    assert all(not module._parameters for name, module in dense.items() if name != "lm_head")
    assert all(isinstance(supernet.model.get_submodule(name), QuantizedLinear) for name in dense if name != "lm_head")


def test_settings_are_those_of_small_networks() -> None:
    assert GPTQ(**SMALL).block_size == RoundToNearest().group_size == 128
