"""QA-SparsePEFT: begins at the base's codes, keeps zeros, scales and zero points, merges into codes exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_families import assert_close, batch, build, logits_of
from test_lora import LORA, with_random_ranks
from test_merging import make_sparse

import nas_llm
from nas_llm.models.quantized_linear import QuantizedLinear, quantized_modules
from nas_llm.models.saving import save_pretrained
from nas_llm.peft.adapters import lora_layers
from nas_llm.peft.merging import merge, mergeable
from nas_llm.peft.qa_sparse_lora import QaSparseLora, QaSparseLoraLinear
from nas_llm.peft.saving import load_supernet, save_supernet
from nas_llm.peft.sparse_lora import SparseLora
from nas_llm.quantization.rtn import RoundToNearest

QA = QaSparseLora(r=6, lora_alpha=12, lora_dropout=0.0)


def quantized(bits: int = 4, sparse: bool = True):
    supernet = build("llama")
    if sparse:
        make_sparse(supernet.model)
    RoundToNearest(bits=bits, group_size=8)(supernet, [])
    return supernet


def trained(supernet, method=QA):
    method(supernet)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in supernet.model.named_parameters():
        if "lora_" in name:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return supernet


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_begins_at_the_codes_of_the_base(bits):
    supernet = quantized(bits)
    before = logits_of(supernet.model, batch())
    QA(supernet)
    assert_close(logits_of(supernet.model, batch()), before)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_merged_codes_are_those_that_training_saw(bits, tmp_path):
    supernet = trained(quantized(bits))
    chosen = with_random_ranks(supernet, supernet.largest().without_ranks, 3)
    with supernet.activate(chosen) as model:
        active = logits_of(model, batch())
    small = supernet.extract(chosen)
    bases = {
        n: layer.get_base_layer().quantized for n, layer in lora_layers(small) if type(layer) is QaSparseLoraLinear
    }
    assert bases
    assert mergeable(small)
    merge(small)
    assert_close(logits_of(small, batch()), active)
    changed = 0
    for name, module in quantized_modules(small).items():
        codes, base = module.quantized, bases[name]
        assert torch.equal(codes.scales, base.scales)
        assert torch.equal(codes.zeros, base.zeros)
        assert 0 <= int(codes.codes.min()) <= int(codes.codes.max()) <= 2**bits - 1
        assert bool((codes.dequantized()[base.dequantized() == 0] == 0).all())
        changed += int((codes.codes != base.codes).sum())
    assert changed > 0
    save_pretrained(small, tmp_path / "out")
    again = nas_llm.from_pretrained(tmp_path / "out")
    assert any(isinstance(module, QuantizedLinear) for module in again.modules())
    assert_close(logits_of(again, batch()), active)


def test_gradients_reach_the_adapters_alone_and_go_straight_through():
    supernet = trained(quantized())
    model = supernet.model
    model(**batch()).logits.square().mean().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient
    assert all("lora_" in name for name in with_gradient)
    layer = next(layer for _, layer in lora_layers(model) if type(layer) is QaSparseLoraLinear)
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    base = layer.get_base_layer().quantized
    summed = layer.summed(base).detach().requires_grad_()
    found = (
        summed.unflatten(1, (base.scales.shape[1], -1)) / base.scales.unsqueeze(-1)
    ).round() + base.zeros.unsqueeze(-1)
    inside = ((found >= 0) & (found <= 15)).flatten(1)
    layer.zero_grad()
    layer(x).sum().backward()
    slope = torch.ones(3, summed.shape[0]).T @ x * inside * (base.dequantized() != 0) * layer.scaling["default"]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert torch.allclose(b.grad, slope @ a.T, atol=1e-4)
    assert torch.allclose(a.grad, b.T @ slope, atol=1e-4)


def test_a_super_network_of_it_is_saved_and_loaded(tmp_path):
    supernet = trained(quantized())
    save_supernet(supernet, tmp_path / "supernet", peft=QA)
    again = load_supernet(tmp_path / "supernet")
    assert again.largest() == supernet.largest()
    assert_close(logits_of(again.model, batch()), logits_of(supernet.model, batch()), 1e-6)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"peft=qa_sparse_peft: none of the matrices is quantised.*quantization=gptq"):
        QA(build("llama"))
    with pytest.raises(ValueError, match=r"peft=sparse_peft: .* is quantised.*peft=qa_sparse_peft"):
        SparseLora(r=6)(quantized())
    plain = trained(quantized(), LORA)
    small = plain.extract(plain.largest())
    with pytest.raises(ValueError, match=r"is quantised.*export.adapters=separate.*peft=qa_sparse_peft"):
        merge(small)


def test_zeros_may_be_given_up_by_name():
    supernet = trained(quantized(), replace(QA, keep_zeros=False))
    small = supernet.extract(supernet.largest())
    before = sum(int((m.quantized.dequantized() == 0).sum()) for m in quantized_modules(small).values())
    expected = logits_of(small, batch())
    summary = merge(small).summary
    assert "of the weights were zero before" in summary
    assert_close(logits_of(small, batch()), expected)
    assert sum(int((m.quantized.dequantized() == 0).sum()) for m in quantized_modules(small).values()) < before
