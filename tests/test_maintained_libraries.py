"""Wanda, SparseGPT and GPTQ beside llmcompressor, rounding beside torchao, where these are installed: the same weights.

(torchao's Wanda is another method: one ranking for a whole layer, by squared norms of what the layer writes.)

They pin versions that are not this package's, so that they lie in folders of their own for this job:
pip install --no-deps --target FOLDER llmcompressor compressed-tensors loguru auto-round; PYTHONPATH=FOLDER pytest ...
pip install --no-deps --target OTHER torchao; PYTHONPATH=OTHER pytest ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from test_baselines import batches
from test_families import build
from torch import Tensor, nn

from nas_llm.baselines.sparse import SparseGPTBaseline, WandaBaseline
from nas_llm.models.block_walk import walk
from nas_llm.models.supernet import Supernet
from nas_llm.quantization.gptq import GPTQ
from nas_llm.quantization.rtn import rounded


def maintained(name: str):
    """A module of a library that may not be there, or not for the versions that are."""
    return pytest.importorskip(name, exc_type=ImportError)


class Inputs:
    """What a projection reads, as it is: (tokens, in)."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self.read = torch.zeros(0, in_features, device=device)

    def add(self, inputs: Tensor) -> None:
        self.read = torch.cat([self.read, inputs])

    def is_finite(self) -> bool:
        return True


def linear(weight: Tensor) -> nn.Linear:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight.data = weight.clone()
    return module


def changed(supernet: Supernet, change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every projection's weight by ``change(weight, inputs)``, block after block."""
    with torch.no_grad():
        for block in walk(supernet, batches()):
            for name, inputs in block.collect(Inputs).items():
                (projection,) = (p for p in block.projections if p.name == name)
                projection.weight.copy_(change(projection.weight, inputs.read))
                yield name, projection.weight


@pytest.mark.parametrize("amount", [{"sparsity": 0.5}, {"pattern": "2:4"}, {"pattern": "4:8"}])
def test_wanda(amount):
    theirs = maintained("llmcompressor.modifiers.pruning.wanda.wanda_sparsify")
    zeros, group = (0, 0) if "sparsity" in amount else map(int, amount["pattern"].split(":"))

    def change(weight: Tensor, inputs: Tensor) -> Tensor:
        module = linear(weight)
        scalars, _ = theirs.accumulate_row_scalars(inputs, module, theirs.make_empty_row_scalars(module), 0)
        return theirs.sparsify_weight(module, {module: scalars}, amount.get("sparsity", 0.0), zeros, group)

    ours = WandaBaseline(**amount)(build("llama"), batches).model.state_dict()
    for name, weight in changed(build("llama"), change):
        assert torch.equal(weight == 0, ours[f"{name}.weight"] == 0), name
        assert torch.equal(weight, ours[f"{name}.weight"]), name


@pytest.mark.parametrize(("pattern", "block_size"), [("2:4", 128), ("4:8", 128), ("2:4", 16)])
def test_sparsegpt(pattern, block_size):
    theirs = maintained("llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify")
    zeros, group = map(int, pattern.split(":"))

    def change(weight: Tensor, inputs: Tensor) -> Tensor:
        module = linear(weight)
        hessian, _ = theirs.accumulate_hessian(inputs, module, theirs.make_empty_hessian(module), 0)
        made = theirs.sparsify_weight(module, {module: hessian}, 0.0, zeros, group, block_size, 0.01, False)
        return made[1] if isinstance(made, tuple) else made

    ours = SparseGPTBaseline(pattern=pattern, block_size=block_size)(build("llama"), batches).model.state_dict()
    for name, weight in changed(build("llama"), change):
        assert torch.equal(weight == 0, ours[f"{name}.weight"] == 0), name
        assert torch.allclose(weight, ours[f"{name}.weight"], atol=1e-4), name


@pytest.mark.parametrize(("act_order", "group_size"), [(True, 8), (False, 48)])
def test_gptq(act_order, group_size):
    """With grids made beforehand, as theirs are: by activation order, or one group a row."""
    quantization = maintained("compressed_tensors.quantization")
    theirs = maintained("llmcompressor.modifiers.gptq.gptq_quantize")
    generator = torch.Generator().manual_seed(0)
    weight, inputs = (torch.randn(size, 48, generator=generator) for size in (40, 96))
    inputs *= torch.linspace(0.2, 3, 48)
    hessian = 2 * inputs.T @ inputs
    method = GPTQ(bits=4, group_size=group_size, act_order=act_order)
    ours = method.quantize(weight, hessian)
    arguments = quantization.QuantizationArgs(
        num_bits=4, symmetric=False, strategy="group", group_size=group_size, actorder="weight" if act_order else None
    )
    made, *_ = theirs.quantize_weight(
        weight[None].clone(),
        hessian[None].clone(),
        scale=ours.scales[None],
        zero_point=ours.zeros[None].to(torch.int8) - 8,  # of codes from -8 to 7
        global_scale=None,
        quant_args=arguments,
    )
    assert torch.allclose(made[0], ours.dequantized(), atol=1e-5)


@pytest.mark.parametrize(("bits", "group_size"), [(2, 16), (4, 48), (8, 8)])
def test_rounding_of_torchao(bits, group_size):
    theirs = maintained("torchao.quantization.quant_primitives")
    weight = torch.randn(40, 48, generator=torch.Generator().manual_seed(bits))
    block, most = (1, group_size), 2**bits - 1
    asymmetric = theirs.MappingType.ASYMMETRIC
    scale, zero = theirs.choose_qparams_affine(weight, asymmetric, block, torch.uint8, 0, most, keepdim=True)
    codes = theirs.quantize_affine(weight, block, scale, zero, torch.uint8, 0, most)
    ours = rounded(weight, bits, group_size)
    assert torch.allclose(scale, ours.scales, rtol=1e-6)
    assert torch.equal(zero.to(torch.uint8), ours.zeros)
    assert torch.equal(codes, ours.codes)
    dequantized = theirs.dequantize_affine(codes, block, scale, zero, torch.uint8, 0, most)
    assert torch.allclose(dequantized, ours.dequantized(), atol=1e-6)
