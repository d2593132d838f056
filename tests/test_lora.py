"""Elastic adapters in every family: active == extracted, counts, stock peft as the oracle of a smaller rank."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_families import FAMILIES, assert_close, batch, build, logits_of, random_architectures
from torch import nn
from transformers.pytorch_utils import Conv1D

from nas_llm.architecture import Architecture
from nas_llm.models.supernet import Supernet
from nas_llm.peft.adapters import lora_layers, remove
from nas_llm.peft.files import AdapterFile
from nas_llm.peft.lora import Lora
from nas_llm.peft.merging import merge

LORA = Lora(r=6, lora_alpha=12, lora_dropout=0.0)
VARIANTS = {
    "plain": LORA,
    "rslora": replace(LORA, use_rslora=True, lora_alpha=5),  # about the scaling of the others
    "dora": replace(LORA, use_dora=True),
    "embeddings": replace(LORA, embeddings=True),
    "per module": replace(LORA, group_by="module"),
}


def trained(supernet: Supernet, lora: Lora = LORA) -> Supernet:
    """With adapters whose B is not zero, as after training."""
    lora(supernet)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in supernet.model.named_parameters():
        if "lora_" in name:
            parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return supernet


def with_random_ranks(supernet: Supernet, architecture: Architecture, seed: int) -> Architecture:
    rng, full = np.random.default_rng(seed), supernet.largest()

    def drawn(ranks):
        return tuple((name, int(rng.integers(1, rank + 1))) for name, rank in ranks)

    layers = tuple(replace(layer, ranks=drawn(full.layers[layer.index].ranks)) for layer in architecture.layers)
    return replace(architecture, layers=layers, ranks=drawn(full.ranks))


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_begin_as_nothing_and_come_off_again(name):
    supernet = build(name)
    before, full = logits_of(supernet.model, batch()), supernet.largest()
    names = set(supernet.model.state_dict())
    LORA(supernet)
    assert_close(logits_of(supernet.model, batch()), before)
    trains = [n for n, parameter in supernet.model.named_parameters() if parameter.requires_grad]
    assert trains
    assert all("lora_" in n for n in trains)
    remove(supernet)
    assert set(supernet.model.state_dict()) == names
    assert supernet.largest() == full
    assert torch.equal(logits_of(supernet.model, batch()), before)


KINDS = ("llama", "llama-tied", "gpt_neox", "gpt2", "phi3")  # a family of each kind of layout
CASES = [(name, "plain") for name in FAMILIES] + [
    (name, variant) for variant in VARIANTS if variant != "plain" for name in KINDS
]


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_active_equals_extracted_and_counted(name, variant):
    supernet = trained(build(name), VARIANTS[variant])
    for seed, architecture in enumerate(random_architectures(supernet, 4)):
        chosen = with_random_ranks(supernet, architecture, seed)
        with supernet.activate(chosen) as model:
            active = logits_of(model, batch())
            generated = model.generate(**batch(), max_new_tokens=4, do_sample=False)
        small = supernet.extract(chosen)
        assert_close(active, logits_of(small, batch()))
        assert torch.equal(generated, small.generate(**batch(), max_new_tokens=4, do_sample=False))
        assert supernet.num_parameters(chosen) == sum(p.numel() for p in small.parameters())
        merge(small)
        assert supernet.num_parameters(chosen, adapters=False) == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "variant"), [(name, variant) for variant in VARIANTS for name in KINDS])
def test_beside_half_precision_adapters_are_in_float32(name, variant, dtype):
    supernet = build(name)
    supernet.model.to(dtype)
    trained(supernet, VARIANTS[variant])
    (architecture,) = random_architectures(supernet, 1, seed=1)
    chosen = with_random_ranks(supernet, architecture, 2)
    with supernet.activate(chosen) as model:
        active = model(**batch()).logits
        active.float().square().mean().backward()
    assert active.dtype == dtype
    trains = {n: parameter for n, parameter in supernet.model.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in trains.values()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in trains.values() if parameter.grad is not None} == {torch.float32}
    small = supernet.extract(chosen)
    assert torch.equal(active, small(**batch()).logits)
    assert supernet.weight_bytes(chosen) == sum(p.numel() * p.itemsize for p in small.parameters())
    merge(small)
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    assert supernet.weight_bytes(chosen, adapters=False) == sum(p.numel() * p.itemsize for p in small.parameters())


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_macs_of_adapters_equal_a_hook_counted_oracle(name):
    supernet = trained(build(name))
    (architecture,) = random_architectures(supernet, 1, seed=3)
    chosen = with_random_ranks(supernet, architecture, 5)
    small, counted = supernet.extract(chosen), [0]

    def hook(module, args, output):
        counted[0] += args[0].numel() * output.shape[-1]

    for module in small.modules():
        if isinstance(module, nn.Linear | Conv1D):
            module.register_forward_hook(hook)
    small(input_ids=torch.zeros(2, 7, dtype=torch.long))
    attended = sum(layer.kv_groups * layer.heads_per_group * layer.head_dim for layer in chosen.layers)
    assert supernet.macs(chosen, batch_size=2, sequence_length=7) == counted[0] + 2 * 2 * 7 * 7 * attended


@pytest.mark.parametrize("variant", ["plain", "rslora"])
def test_a_smaller_rank_is_the_whole_one_with_rows_left_out(variant):
    supernet = trained(build("llama"), VARIANTS[variant])
    chosen = with_random_ranks(supernet, supernet.largest().without_ranks, 2)
    with supernet.activate(chosen) as model:
        active = logits_of(model, batch())
    by_layer = {layer.index: dict(layer.ranks) for layer in chosen.layers}
    groups = {"q": "attention_in", "k": "attention_in", "v": "attention_in", "o": "attention_out"}
    groups |= {"gate": "ffn_in", "up": "ffn_in", "down": "ffn_out"}
    for name, layer in lora_layers(supernet.model):
        ranks = by_layer[int(name.split(".")[2])] if ".layers." in name else dict(chosen.ranks)
        rank = ranks[groups.get(name.split(".")[-1].removesuffix("_proj"), "lm_head")]
        layer.lora_A["default"].weight.data[rank:] = 0  # the oracle: no slicing, the left-out rows are zero
    assert_close(logits_of(supernet.model, batch()), active)


def test_sorting_keeps_the_function_with_adapters_on():
    supernet = trained(build("llama"))
    before = logits_of(supernet.model, batch())
    generator = torch.Generator().manual_seed(0)
    from nas_llm.models.order import axis_shapes

    supernet.sort({k: torch.rand(v, generator=generator) for k, v in axis_shapes(supernet.largest()).items()})
    assert_close(logits_of(supernet.model, batch()), before, 1e-4)


def test_the_seed_of_the_adapters_decides_alone():
    def drawn(seed: int, before: int) -> torch.Tensor:
        supernet = build("llama")
        torch.manual_seed(before)
        replace(LORA, seed=seed)(supernet)
        assert torch.initial_seed() == before
        return next(p for n, p in supernet.model.named_parameters() if "lora_A" in n)

    assert torch.equal(drawn(0, 1), drawn(0, 2))
    assert not torch.equal(drawn(0, 1), drawn(1, 1))


def test_longer_ends_of_names_choose_single_matrices():
    supernet = build("llama")
    replace(LORA, target_modules=["layers.1.self_attn.q_proj", "layers.2.mlp.up_proj"])(supernet)
    names = [name for name, _ in lora_layers(supernet.model)]
    assert names == ["model.layers.1.self_attn.q_proj", "model.layers.2.mlp.up_proj"]
    small = supernet.extract(replace(supernet.largest(), layers=supernet.largest().layers[1:]))
    assert sorted(AdapterFile.of(small).config.target_modules) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]


def test_what_cannot_be_is_refused():
    supernet = build("llama")
    with pytest.raises(ValueError, match=r"peft.target_modules: 'q_prj' matches no matrix.*mean q_proj.*down_proj"):
        replace(LORA, target_modules=["q_prj"])(supernet)
    with pytest.raises(ValueError, match=r"peft.target_modules=\[\]"):
        replace(LORA, target_modules=[])(supernet)
    with pytest.raises(ValueError, match=r"peft.r=25 is above the size of model.layers.0.self_attn.k_proj, 24"):
        replace(LORA, r=25)(supernet)
    assert not supernet.attached
    LORA(supernet)
    with pytest.raises(ValueError, match="has adapters already"):
        LORA(supernet)
    full = supernet.largest()
    with pytest.raises(ValueError, match=r"rank 7 of the adapters 'lm_head' does not fit.*at most 6"):
        supernet.num_parameters(replace(full, ranks=(("lm_head", 7),)))
    with (
        pytest.raises(ValueError, match=r"adapters 'lm_haed'.*groups: lm_head"),
        supernet.activate(replace(full, ranks=(("lm_haed", 2),))),
    ):
        pass
    for key, value in {"r": 0, "lora_alpha": 0, "lora_dropout": 1.0, "group_by": "layer"}.items():
        with pytest.raises(ValueError, match=f"peft.{key}"):
            replace(LORA, **{key: value})


def test_an_architecture_with_ranks_is_a_value_like_any_other():
    supernet = build("llama")
    plain = supernet.largest()
    LORA(supernet)
    full = supernet.largest()
    assert Architecture.from_dict(full.to_dict()) == full
    assert full.id != plain.id
    assert "ranks" not in str(plain.to_dict())
    assert full.without_ranks == plain
    assert "rank 6 of ffn_in" in full.summary()
    with supernet.activate(plain) as model:  # left out: whole
        assert_close(logits_of(model, batch()), logits_of(supernet.model, batch()))
