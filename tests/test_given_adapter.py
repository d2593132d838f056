"""An adapter given with a network: merged == stock peft, training begins with its function, misfits are one line."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_families import assert_close, batch, build, logits_of, small_uniform
from test_lora import LORA, VARIANTS, trained, with_random_ranks
from test_merging import SPARSE, make_sparse

from nas_llm.models.supernet import Supernet
from nas_llm.peft.adapters import strip
from nas_llm.peft.files import AdapterFile
from nas_llm.peft.given import GivenAdapter
from nas_llm.peft.saving import save_supernet

KINDS = ("llama", "llama-tied", "gpt_neox", "gpt2", "phi3")


def plain(name: str, **changes):
    """The model of `build`, with no super-network around it."""
    supernet = build(name, **changes)
    return supernet.extract(supernet.largest())


@pytest.fixture
def stock(tmp_path):
    """What stock peft saves of two kinds of modules, at ranks and scalings of their own; its logits beside it."""

    def make(name: str = "llama", **changes):
        targets = {"gpt2": ["c_attn", "c_proj"], "gpt_neox": ["query_key_value", "dense_4h_to_h"]}
        settings = {"r": 4, "lora_alpha": 6, "target_modules": targets.get(name, ["o_proj", "down_proj"])} | changes
        settings["fan_in_fan_out"] = name == "gpt2"
        torch.manual_seed(5)
        model = get_peft_model(plain(name), LoraConfig(**settings, task_type="CAUSAL_LM"))
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data.add_(0.2 * torch.randn(parameter.shape))
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter", logits_of(model.eval(), batch())

    return make


CASES = {
    "plain": {},
    "patterns": {"rank_pattern": {"layers.1.self_attn.o_proj": 2}, "alpha_pattern": {"down_proj": 1}},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "dora": {"use_dora": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_a_stock_adapter_is_merged_and_trained_on(name, case, stock):
    folder, expected = stock(name, **CASES[case])
    given, model = GivenAdapter.read(folder), plain(name)
    given.merge_into(model)
    assert_close(logits_of(model, batch()), expected)
    assert_close(logits_of(Supernet(model).model, batch()), expected)
    assert all(parameter.requires_grad for parameter in model.parameters())
    supernet = build(name)
    lora = replace(LORA, r=5, lora_alpha=7, use_dora=case == "dora")  # other ranks and another scaling
    lora(supernet)
    given.start(supernet, lora)
    assert_close(logits_of(supernet.model, batch()), expected)
    with torch.no_grad():
        b = [p for n, p in supernet.model.named_parameters() if "lora_B" in n]
    assert all(p[:, 4:].eq(0).all() for p in b), "ranks above the file's begin as nothing"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", KINDS)
def test_adapters_of_this_program_are_merged_and_trained_on_in_a_sorted_network(name, variant, tmp_path):
    if variant in ("dora", "embeddings") and name in ("gpt2",):
        pytest.skip("as the other families")
    supernet = trained(build(name), VARIANTS[variant])
    for key, parameter in supernet.model.named_parameters():  # as strong as training makes them
        if "lora_B" in key or "lora_embedding_B" in key:
            parameter.data.mul_(0.3)
    expected = logits_of(supernet.model, batch())
    AdapterFile.of(supernet.model).write(tmp_path / "adapter")
    given, model = GivenAdapter.read(tmp_path / "adapter"), plain(name)
    given.merge_into(model)
    assert_close(logits_of(model, batch()), expected)
    other = build(name)
    shapes = {"hidden": (other.largest().hidden,)} if "hidden" in other.elastic_axes else {}
    for layer in other.largest().layers:
        at = f"layers.{layer.index}"
        shapes |= {f"{at}.ffn": (layer.ffn,)}
        if "kv_groups" in other.elastic_axes:
            shapes |= {f"{at}.kv_groups": (layer.kv_groups,)}
        if "heads_per_group" in other.elastic_axes:
            shapes |= {f"{at}.heads_per_group": (layer.kv_groups, layer.heads_per_group)}
    generator = torch.Generator().manual_seed(8)
    other.sort({key: torch.rand(shape, generator=generator) for key, shape in shapes.items()})
    before = {key: value.clone() for key, value in other.model.state_dict().items()}
    VARIANTS[variant](other)
    given.start(other, VARIANTS[variant])
    assert_close(logits_of(other.model, batch()), expected)
    strip(other.model)
    assert all(torch.equal(value, before[key]) for key, value in other.model.state_dict().items())


def test_a_sub_network_s_adapters_go_on_at_the_whole_rank(tmp_path):
    supernet = trained(build("llama"))
    small = supernet.extract(with_random_ranks(supernet, small_uniform(supernet), 1))
    expected = logits_of(small, batch())
    AdapterFile.of(small).write(tmp_path / "adapter")
    strip(small)
    again = Supernet(small)
    LORA(again)
    GivenAdapter.read(tmp_path / "adapter").start(again, LORA)
    assert_close(logits_of(again.model, batch()), expected)
    assert all(rank == LORA.r for _, rank in again.largest().layers[0].ranks)


def test_masked_adapters_merge_into_their_sparse_base_and_dense_ones_do_not(tmp_path):
    for lora in (SPARSE, LORA):
        supernet = build("llama")
        make_sparse(supernet.model)
        base = supernet.extract(supernet.largest())
        trained(supernet, lora)
        save_supernet(supernet, tmp_path / str(lora is SPARSE), peft=lora)
        given = GivenAdapter.read(tmp_path / str(lora is SPARSE) / "adapter")
        if lora is LORA:
            with pytest.raises(ValueError, match=r"model.adapter_path=.* is sparse .*peft=lora peft.r=6 peft.lora_al"):
                given.merge_into(base)
            SPARSE(again := build("llama"))
            with pytest.raises(ValueError, match="those of peft=lora, whose function peft=sparse_peft does not have"):
                given.start(again, SPARSE)
            continue
        given.merge_into(base)
        assert_close(logits_of(base, batch()), logits_of(supernet.model, batch()))


def test_misfits_are_one_line(stock, tmp_path):
    folder, _ = stock()
    given = GivenAdapter.read(folder)
    with pytest.raises(
        ValueError, match=r"down_proj is 48 x 80 in it and 36 x 80 here.*: set model.path to the network"
    ):
        given.merge_into(plain("llama", hidden_size=36, head_dim=12))
    with pytest.raises(ValueError, match="no such matrix in GPT2LMHeadModel"):
        given.merge_into(plain("gpt2"))
    supernet = build("llama")
    for lora, says in {
        replace(LORA, r=3): r"has rank 4 in it, above peft.r=3; set peft.r=4 peft.lora_alpha=6",
        replace(LORA, target_modules=("q_proj",)): r"set peft.target_modules=\[down_proj,o_proj\]",
        replace(LORA, use_dora=True): "trained with use_dora=false; set peft.use_dora=false",
    }.items():
        lora(supernet := build("llama"))
        before = {key: value.clone() for key, value in supernet.model.state_dict().items()}
        with pytest.raises(ValueError, match=says):
            given.start(supernet, lora)
        assert all(torch.equal(value, before[key]) for key, value in supernet.model.state_dict().items())
    with pytest.raises(ValueError, match=f"holds no adapter of peft .*; {folder} does"):
        GivenAdapter.read(tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    for key, value in {
        "peft_type": "IA3",
        "bias": "all",
        "modules_to_save": ["norm"],
        "init_lora_weights": "pissa",
    }.items():
        (folder / "adapter_config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(ValueError, match=f"says {key}=.*which is not read here"):
            GivenAdapter.read(folder)
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    with pytest.raises(ValueError, match="rank 8 by adapter_config.json: the two files do not belong together"):
        GivenAdapter.read(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="adapter_config.json is damaged"):
        GivenAdapter.read(folder)
