"""Merged == unmerged; exported adapters load in stock peft, without nas_llm; what would lose is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from test_families import FAMILIES, assert_close, batch, build, logits_of, random_architectures, small_uniform
from test_lora import LORA, VARIANTS, trained, with_random_ranks
from torch import nn

import nas_llm
from nas_llm.lightning.preparation import sparsify
from nas_llm.models.saving import save_pretrained
from nas_llm.models.supernet import Supernet
from nas_llm.peft.adapters import ACCIDENTAL, factors, lora_layers, strip
from nas_llm.peft.files import AdapterFile, read_adapter
from nas_llm.peft.lora import Lora
from nas_llm.peft.merging import merge, mergeable
from nas_llm.peft.saving import load_supernet, save_supernet
from nas_llm.peft.sparse_lora import SparseLora, masked_sum
from nas_llm.sparsity.magnitude import Magnitude

SPARSE = SparseLora(r=6, lora_alpha=12, lora_dropout=0.0)


def make_sparse(model: nn.Module, share: float = 0.5) -> None:
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data[torch.rand(module.weight.shape, generator=generator) < share] = 0


@pytest.mark.parametrize("name", FAMILIES)
def test_merged_equals_unmerged_and_loads_again(name, tmp_path):
    supernet = trained(build(name))
    (architecture,) = random_architectures(supernet, 1, seed=4)
    small = supernet.extract(with_random_ranks(supernet, architecture, 0))
    before = logits_of(small, batch())
    merged = merge(small)
    assert merged.difference <= 1e-5
    assert not list(lora_layers(small))
    assert_close(logits_of(small, batch()), before)
    assert sum(p.numel() for p in small.parameters()) >= supernet.num_parameters(architecture, adapters=False)
    save_pretrained(small, tmp_path / "out")
    assert_close(logits_of(nas_llm.from_pretrained(tmp_path / "out"), batch()), before)
    with pytest.raises(ValueError, match="no adapters to merge: they were merged before"):
        merge(small)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_merge(variant):
    supernet = trained(build("llama-tied"), VARIANTS[variant])
    small = supernet.extract(supernet.largest())
    before = logits_of(small, batch())
    merge(small)
    assert_close(logits_of(small, batch()), before)


LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
from peft import PeftModel
base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model = PeftModel.from_pretrained(base, sys.argv[1] + "/adapter").eval()
assert "nas_llm" not in sys.modules
with torch.inference_mode():
    torch.save(model(**torch.load(sys.argv[2])).logits, sys.argv[3])
"""


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sub_adapter_loads_in_stock_peft_in_a_process_without_nas_llm(variant, tmp_path):
    supernet = trained(build("llama"), VARIANTS[variant])
    chosen = with_random_ranks(supernet, small_uniform(supernet), 1)
    small = supernet.extract(chosen)
    expected = logits_of(small, batch())
    adapters = AdapterFile.of(small, str(tmp_path / "out"))
    strip(small)
    save_pretrained(small, tmp_path / "out", extra=lambda folder: adapters.write(folder / "adapter"))
    torch.save(batch(), tmp_path / "in.pt")
    script = [sys.executable, "-c", LOAD, str(tmp_path / "out"), str(tmp_path / "in.pt"), str(tmp_path / "logits.pt")]
    subprocess.run(script, check=True, env=os.environ | {"PYTHONPATH": ""}, cwd=tmp_path)
    assert_close(torch.load(tmp_path / "logits.pt"), expected, 1e-6)
    save_pretrained(small, tmp_path / "out")  # a model that this program wrote is replaced whole


@pytest.mark.parametrize("method", [*VARIANTS.values(), SPARSE], ids=[*VARIANTS, "sparse"])
def test_a_super_network_with_adapters_is_saved_and_loaded(method, tmp_path):
    supernet = build("llama")
    make_sparse(supernet.model)
    trained(supernet, method)
    save_supernet(supernet, tmp_path / "supernet", peft=method)
    again = load_supernet(tmp_path / "supernet")
    assert again.largest() == supernet.largest()
    assert torch.equal(logits_of(again.model, batch()), logits_of(supernet.model.eval(), batch()))


def test_adapters_of_another_network_are_refused(tmp_path):
    one = trained(build("llama"))
    AdapterFile.of(one.model).write(tmp_path / "one")
    other = build("llama", hidden_size=36)
    LORA(other)
    with pytest.raises(ValueError, match="another network or of other modules: .*has the shape"):
        read_adapter(other, tmp_path / "one")
    with pytest.raises(ValueError, match="holds no adapter"):
        read_adapter(other, tmp_path)


# ------------------------------------------------------------------------------------------------ sparse bases


def test_masked_sum_is_its_definition():
    generator = torch.Generator().manual_seed(0)
    weight, a, b = (torch.randn(s, generator=generator) for s in ((12, 8), (3, 8), (12, 3)))
    weight[torch.rand(weight.shape, generator=generator) < 0.5] = 0
    expected = weight + 0.7 * (b @ a) * (weight != 0)
    assert torch.allclose(masked_sum(weight, a, b, 0.7), expected, atol=1e-6)
    assert torch.allclose(masked_sum(weight.T, a, b, 0.7, transposed=True), expected.T, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_sparse_adapters_keep_every_zero(name):
    supernet = build(name)
    make_sparse(supernet.model)
    trained(supernet, SPARSE)
    for seed, architecture in enumerate(random_architectures(supernet, 3)):
        chosen = with_random_ranks(supernet, architecture, seed)
        with supernet.activate(chosen) as model:
            active = logits_of(model, batch())
        small = supernet.extract(chosen)
        assert_close(logits_of(small, batch()), active)
        zeros = {name: layer.get_base_layer().weight == 0 for name, layer in lora_layers(small)}
        merged = merge(small)
        assert_close(logits_of(small, batch()), active)
        assert merged.zeros_after >= merged.zeros_before > 0
        for name_, zero in zeros.items():
            assert bool((small.get_submodule(name_).weight[zero] == 0).all())


def test_sparse_adapters_equal_plain_ones_on_a_dense_base():
    plain, sparse = trained(build("llama")), trained(build("llama"), SPARSE)
    assert_close(logits_of(sparse.model, batch()), logits_of(plain.model, batch()))


def test_dropout_of_sparse_adapters_keeps_the_mean():
    supernet = build("llama", num_hidden_layers=1)
    trained(supernet, replace(SPARSE, lora_dropout=0.5, target_modules=["q_proj"]))
    ((_, layer),) = lora_layers(supernet.model)
    x, torch_state = torch.randn(5, 48, generator=torch.Generator().manual_seed(1)), torch.manual_seed(0)
    assert torch_state is not None
    with torch.no_grad():
        still = layer.eval()(x)
        drawn = torch.stack([layer.train()(x) for _ in range(4000)])
    assert drawn.std(0).max() > 0.1
    assert ((drawn.mean(0) - still).abs() / (drawn.std(0) / 4000**0.5 + 1e-6)).max() < 5


def test_what_would_be_lost_is_refused_and_left_as_it_was():
    supernet = build("llama")
    make_sparse(supernet.model)
    trained(supernet)
    small = supernet.extract(supernet.largest())
    before = logits_of(small, batch())
    assert not mergeable(small)
    with pytest.raises(ValueError, match=r"q_proj is sparse \(.*% zeros\).*export.adapters=separate.*peft=sparse_peft"):
        merge(small)
    assert torch.equal(logits_of(small, batch()), before)
    with pytest.raises(ValueError, match="has adapters beside its weights; merge them first"):
        save_pretrained(small, "never")
    for key in ("use_dora", "embeddings"):
        with pytest.raises(ValueError, match=f"peft.{key}=true"):
            replace(SPARSE, **{key: True})


def test_few_zeros_are_kept_where_the_base_was_made_sparse(tmp_path):
    """Half a percent of zeros is no less promised than half of them."""
    supernet = build("llama")
    sparsify(supernet, Magnitude(sparsity=0.005, targets=["q_proj"]), list, tmp_path, resumes=False)
    weight = supernet.model.get_submodule(next(iter(supernet.made_sparse))).weight
    assert 0 < float((weight == 0).float().mean()) < ACCIDENTAL
    trained(supernet)
    save_supernet(supernet, tmp_path / "supernet", peft=LORA)
    for found in (supernet, load_supernet(tmp_path / "supernet")):
        assert found.made_sparse
        small = found.extract(found.largest())
        assert not mergeable(small)
        with pytest.raises(ValueError, match="q_proj is sparse .*merging would fill the zeros"):
            merge(small)


def test_rounding_in_float16_alone_is_no_difference():
    supernet = Supernet.from_pretrained("microworld_llama", dtype="float16")
    Lora(r=32, lora_alpha=64, lora_dropout=0.0)(supernet)
    generator = torch.Generator().manual_seed(0)
    for _, layer in lora_layers(supernet.model):
        b = factors(layer)[1]
        b.data.copy_(0.01 * torch.randn(b.shape, generator=generator))
    assert 5e-3 < merge(supernet.extract(supernet.largest())).difference < 1e-2
