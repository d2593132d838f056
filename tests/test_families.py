"""Every family: active == extracted == reloaded; counts equal numel; sorting keeps the function."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.models.loading import from_pretrained
from nas_llm.models.order import axis_shapes
from nas_llm.models.saving import save_pretrained
from nas_llm.models.stock import is_stock
from nas_llm.models.supernet import Supernet
from nas_llm.search_space import SearchSpace

SIZES = {
    "vocab_size": 96,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
GROUPED = SIZES | {"num_key_value_heads": 3, "intermediate_size": 80}
CONFIGS = {
    "llama": GROUPED | {"head_dim": 8},
    "llama-tied": GROUPED
    | {"model_type": "llama", "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "mistral": GROUPED | {"head_dim": 8, "sliding_window": 8},
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 16},
    "gemma": GROUPED | {"head_dim": 16},
    "gemma2": GROUPED | {"head_dim": 16, "sliding_window": 8},
    "gemma3_text": GROUPED
    | {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "olmo2": GROUPED,
    "phi": GROUPED | {"qk_layernorm": True, "partial_rotary_factor": 0.5},
    "phi3": GROUPED | {"pad_token_id": 0, "partial_rotary_factor": 1.0},
    "stablelm": GROUPED | {"use_qkv_bias": True, "partial_rotary_factor": 0.5},
    "stablelm-parallel": GROUPED | {"model_type": "stablelm", "use_parallel_residual": True},
    "gpt_neox": SIZES | {"intermediate_size": 80, "rotary_pct": 0.5},
    "gpt2": SIZES,
    "opt": SIZES | {"ffn_dim": 80, "word_embed_proj_dim": 48},
    "opt-projected": SIZES
    | {"model_type": "opt", "ffn_dim": 80, "word_embed_proj_dim": 24, "do_layer_norm_before": False},
}
FAMILIES = list(CONFIGS)


def build(name: str, **changes) -> Supernet:
    keys = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} | CONFIGS[name] | changes
    config = AutoConfig.for_model(keys.pop("model_type", name), **keys)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in model.parameters():  # norms and biases start at one and zero: make every unit different
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return Supernet(model)


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 96, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # left padding, as generation needs it
    return {"input_ids": ids, "attention_mask": mask}


def random_architectures(supernet: Supernet, count: int, seed: int = 0) -> list[Architecture]:
    """Per-layer shapes, any subset of layers (the first may go), heads within groups, head size where allowed."""
    rng = np.random.default_rng(seed)
    full = supernet.largest()
    shape = full.layers[0]
    head_dims = range(2, shape.head_dim + 1, 2) if "head_dim" in supernet.elastic_axes else [shape.head_dim]
    found = []
    for _ in range(count):
        head_dim = int(rng.choice(list(head_dims)))
        kept = np.sort(rng.permutation(full.num_layers)[: rng.integers(1, full.num_layers + 1)])
        layers = tuple(
            LayerChoice(
                int(i),
                int(rng.integers(1, shape.kv_groups + 1)),
                int(rng.integers(1, shape.heads_per_group + 1)),
                head_dim,
                int(rng.integers(1, shape.ffn + 1)),
            )
            for i in kept
        )
        found.append(Architecture(int(rng.integers(8, full.hidden + 1)), layers))
    return found


def logits_of(model, inputs) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs).logits


def assert_close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_active_equals_extracted(name):
    supernet = build(name)
    inputs = batch()
    before = logits_of(supernet.model, inputs)
    for architecture in random_architectures(supernet, 6):
        with supernet.activate(architecture) as model:
            active = logits_of(model, inputs)
            generated = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        small = supernet.extract(architecture)
        assert_close(active, logits_of(small, inputs))
        assert torch.equal(generated, small.generate(**inputs, max_new_tokens=6, do_sample=False))
        assert supernet.num_parameters(architecture) == sum(p.numel() for p in small.parameters())
    assert torch.equal(before, logits_of(supernet.model, inputs))


def small_uniform(supernet: Supernet) -> Architecture:
    """What the stock configuration of every family can say: the width follows the heads."""
    full = supernet.largest()
    shape = full.layers[0]
    if supernet.family in ("gpt2", "opt", "gpt_neox", "stablelm", "phi"):  # head_dim is hidden / heads in their code
        groups, per_group = (4, 1) if shape.heads_per_group == 1 else (2, 2)
        choice = (groups, per_group, shape.head_dim, 40)
        hidden = groups * per_group * shape.head_dim
    else:
        choice, hidden = (2, 1, shape.head_dim, 40), 40
    return Architecture(hidden, tuple(LayerChoice(i, *choice) for i in (1, 2, 3)))


LOAD = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
if sys.argv[2] == "stock":
    from transformers import AutoModelForCausalLM
    load = AutoModelForCausalLM.from_pretrained
else:
    from nas_llm import from_pretrained as load
inputs = load_file(sys.argv[1] + "/inputs.safetensors")
for folder in sorted(Path(sys.argv[1]).glob("*/config.json")):
    model = load(str(folder.parent)).eval()
    with torch.inference_mode():
        logits = model(**inputs).logits
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    save_file({"logits": logits.contiguous(), "tokens": tokens.contiguous()}, folder.parent / "out.safetensors")
if sys.argv[2] == "stock":
    assert not any(name.startswith("nas_llm") for name in sys.modules)
"""


def reload_in_fresh_process(folder, how: str) -> None:
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), how], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]


def check_reloaded(folder, expected: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    for name, (logits, tokens) in expected.items():
        out = load_file(folder / name / "out.safetensors")
        assert_close(out["logits"], logits)
        assert torch.equal(out["tokens"], tokens), name


def save_all(folder, architectures_of) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    inputs = batch()
    save_file(inputs, folder / "inputs.safetensors")
    expected = {}
    for name in FAMILIES:
        supernet = build(name)
        for number, architecture in enumerate(architectures_of(supernet)):
            with supernet.activate(architecture) as model:
                tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
                expected[f"{name}-{number}"] = (logits_of(model, inputs), tokens)
            save_pretrained(supernet.extract(architecture), folder / f"{name}-{number}")
    return expected


def test_uniform_sub_networks_load_with_the_stock_class_in_a_process_without_nas_llm(tmp_path):
    expected = save_all(tmp_path, lambda supernet: [small_uniform(supernet), supernet.largest()])
    reload_in_fresh_process(tmp_path, "stock")
    check_reloaded(tmp_path, expected)


def test_any_sub_network_loads_through_nas_llm_in_a_fresh_process(tmp_path):
    expected = save_all(tmp_path, lambda supernet: random_architectures(supernet, 3, seed=5))
    reload_in_fresh_process(tmp_path, "nas_llm")
    check_reloaded(tmp_path, expected)


def test_head_size_of_rotary_families_is_stock_by_its_theta(tmp_path):
    supernet = build("llama", head_dim=16)
    architecture = Architecture(48, tuple(LayerChoice(i, 3, 2, 8, 80) for i in range(4)))
    small = supernet.extract(architecture)
    assert is_stock(small)
    save_pretrained(small, tmp_path / "small")
    with supernet.activate(architecture) as model:
        assert_close(
            logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "small"), batch()), logits_of(model, batch())
        )


def test_the_stock_loader_refuses_what_it_cannot_express(tmp_path):
    supernet = build("llama")
    save_pretrained(supernet.extract(random_architectures(supernet, 1, seed=5)[0]), tmp_path / "cut")
    with pytest.raises((ValueError, KeyError), match="nas_llm"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "cut")


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "olmo2"])  # olmo2 normalises across heads
def test_active_equals_the_masked_full_network(name):
    """Independent oracle for heads, FFN and depth: the full network with the dropped units' outputs set to zero."""
    supernet = build(name)
    full = supernet.largest()
    shape = full.layers[0]
    groups, per_group, width = 2, max(1, shape.heads_per_group - 1), 48
    layers = tuple(LayerChoice(i, groups, per_group, shape.head_dim, width) for i in range(full.num_layers))
    with supernet.activate(Architecture(full.hidden, layers)) as model:
        active = logits_of(model, batch())
    masked = build(name).model
    heads = torch.zeros(shape.kv_groups, shape.heads_per_group, shape.head_dim)
    heads[:groups, :per_group] = 1
    neurons = (torch.arange(shape.ffn) < width).float()
    outputs = {"o_proj": heads, "out_proj": heads, "dense": heads, "attn.c_proj": heads}
    outputs |= {"down_proj": neurons, "fc2": neurons, "dense_4h_to_h": neurons, "mlp.c_proj": neurons}
    hooked = 0
    for module_name, module in masked.named_modules():
        mask = next((mask for suffix, mask in outputs.items() if module_name.endswith(suffix)), None)
        if mask is not None:
            module.register_forward_pre_hook(lambda _, args, mask=mask: (args[0] * mask.flatten(),))
            hooked += 1
    assert hooked == 2 * full.num_layers
    assert_close(active, logits_of(masked, batch()))


@pytest.mark.parametrize("name", FAMILIES)
def test_macs_equal_a_hook_counted_oracle(name):
    supernet = build(name)
    architecture = random_architectures(supernet, 1, seed=3)[0]
    counted = 0

    def count_projection(module, args, output):
        nonlocal counted
        counted += module._parameters["weight"].numel() * args[0].shape[:-1].numel()

    small = supernet.extract(architecture)
    for module in small.modules():
        if type(module).__name__ in ("Linear", "Conv1D"):
            module.register_forward_hook(count_projection)
    small.set_attn_implementation("eager")
    attended: list[int] = []
    product = torch.matmul

    def counting_matmul(a, b):
        attended.append(a.numel() * b.shape[-1])
        return product(a, b)

    torch.matmul = counting_matmul
    try:
        small(torch.randint(3, 96, (2, 16)), use_cache=False)
    finally:
        torch.matmul = product
    assert len(attended) == 2 * architecture.num_layers
    assert supernet.macs(architecture, batch_size=2, sequence_length=16) == counted + sum(attended)


@pytest.mark.parametrize("name", FAMILIES)
def test_sorting_keeps_the_function_and_extends_to_saved_networks(name, tmp_path):
    supernet = build(name)
    before = logits_of(supernet.model, batch())
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        scores = {key: torch.rand(shape, generator=generator) for key, shape in axis_shapes(supernet.largest()).items()}
        supernet.sort(scores)
        assert_close(logits_of(supernet.model, batch()), before)
    assert supernet.layer_order == tuple(scores["layers"].argsort(descending=True).tolist())
    supernet.save(tmp_path / "supernet")
    loaded = Supernet.load(tmp_path / "supernet")
    assert loaded.layer_order == supernet.layer_order
    assert_close(logits_of(loaded.model, batch()), before)


def test_sorted_order_says_where_every_unit_came_from():
    supernet, original = build("llama"), build("llama")
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        scores = {key: torch.rand(shape, generator=generator) for key, shape in axis_shapes(supernet.largest()).items()}
        supernet.sort(scores)
    attention, before = supernet.model.model.layers[1].self_attn, original.model.model.layers[1].self_attn
    units, hidden = supernet.order.units, supernet.order.units["hidden"]
    groups, heads = units["layers.1.kv_groups"], units["layers.1.heads_per_group"]
    old = before.q_proj.weight.view(3, 2, 8, 48)
    expected = torch.stack([old[group][heads[place]] for place, group in enumerate(groups)])[..., hidden]
    assert torch.equal(attention.q_proj.weight.view(3, 2, 8, 48), expected)


def test_sorting_puts_the_important_units_first():
    supernet = build("llama")
    gate = supernet.model.model.layers[0].mlp.gate_proj.weight.detach().clone()
    supernet.sort({"layers.0.ffn": gate.norm(dim=1)})
    norms = supernet.model.model.layers[0].mlp.gate_proj.weight.norm(dim=1)
    assert torch.all(norms[:-1] >= norms[1:])


def test_gradients_of_the_active_network_are_those_of_the_extracted_one():
    supernet = build("llama")
    architecture = random_architectures(supernet, 1, seed=2)[0]
    small = supernet.extract(architecture)
    ids = batch()["input_ids"]
    with supernet.activate(architecture) as model:
        model(ids, labels=ids).loss.backward()
    small(ids, labels=ids).loss.backward()
    gradient = supernet.model.model.layers[architecture.layers[0].index].mlp.down_proj.weight.grad
    other = small.model.layers[0].mlp.down_proj.weight.grad
    rows, columns = other.shape
    assert torch.allclose(gradient[:rows, :columns], other, rtol=1e-4, atol=1e-6)
    assert gradient[rows:].abs().sum() == 0
    assert gradient[:, columns:].abs().sum() == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing_changes_no_gradient(name):
    supernet = build(name)
    architecture = random_architectures(supernet, 1, seed=2)[0]
    ids = batch()["input_ids"]
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            supernet.model.gradient_checkpointing_enable({"use_reentrant": False})
            supernet.model.train()
        supernet.zero_grad()
        torch.manual_seed(0)
        with supernet.activate(architecture) as model:
            model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in supernet.named_parameters() if p.grad is not None})
        if not checkpointing and name in ("gpt2", "opt", "opt-projected", "phi"):
            return  # dropout is on by default there: train and eval differ by design; the others cover the mechanism
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][key], rtol=1e-4, atol=1e-6), key


def test_state_dict_round_trip_and_names():
    supernet = build("llama")
    plain = AutoModelForCausalLM.from_config(supernet.config)
    assert list(supernet.model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(supernet.model.state_dict())
    assert_close(logits_of(plain, batch()), logits_of(supernet.model, batch()))
    supernet.model.load_state_dict(plain.state_dict())


def test_bf16_sub_networks():
    supernet = build("llama")
    supernet.model.to(torch.bfloat16)
    architecture = random_architectures(supernet, 1, seed=2)[0]
    with supernet.activate(architecture) as model:
        assert_close(
            logits_of(model, batch()).float(), logits_of(supernet.extract(architecture), batch()).float(), 1e-2
        )


def long_batch() -> dict[str, torch.Tensor]:
    """Long enough for rounded rotary frequencies to show."""
    return {"input_ids": torch.randint(3, 96, (2, 60), generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_cast_super_network_is_what_the_stock_class_loads_in_that_precision(name, dtype, tmp_path):
    supernet = build(name)
    kept = {"largest": supernet.largest(), "uniform": small_uniform(supernet)}
    for folder, architecture in kept.items():
        save_pretrained(supernet.extract(architecture), tmp_path / folder)
    supernet.to(dtype)
    for folder, architecture in kept.items():
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / folder, dtype=dtype)
        expected = logits_of(stock, long_batch())
        cast, loaded = supernet.extract(architecture), Supernet(stock)
        for small in (cast, loaded.extract(loaded.largest())):
            assert torch.equal(logits_of(small, long_batch()), expected)
            save_pretrained(small, tmp_path / "saved")
            saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
            assert saved.dtype == dtype
            assert torch.equal(logits_of(saved, long_batch()), expected)
            weights = load_file(tmp_path / "saved" / "model.safetensors")
            assert not any(key.endswith(("inv_freq", "embed_scale")) for key in weights)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cut_loaded_in_another_precision_is_that_of_a_cast_super_network(name, tmp_path):
    supernet = build(name)
    (architecture,) = random_architectures(supernet, 1, seed=5)
    save_pretrained(supernet.extract(architecture), tmp_path / "cut")
    expected = logits_of(supernet.to(torch.bfloat16).extract(architecture), long_batch())
    assert torch.equal(logits_of(from_pretrained(tmp_path / "cut", dtype="bfloat16"), long_batch()), expected)


def test_casting_there_and_back_leaves_the_constants():
    supernet = build("gemma3_text")
    before = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    supernet.to(torch.bfloat16).half().float()
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in supernet.named_buffers())


def test_activation_nests_and_restores_on_errors():
    supernet = build("gemma3_text")
    a, b = random_architectures(supernet, 2)
    before, keys = logits_of(supernet.model, batch()), supernet.config.to_dict()
    with supernet.activate(a) as model:
        outer = logits_of(model, batch())
        with supernet.activate(b):
            assert not torch.equal(logits_of(model, batch()), outer)
        assert torch.equal(logits_of(model, batch()), outer)

    def fail() -> None:
        with supernet.activate(a):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert torch.equal(logits_of(supernet.model, batch()), before)
    assert supernet.config.to_dict() == keys


def cut_within(supernet: Supernet, outer: Architecture, seed: int) -> tuple[Architecture, Architecture]:
    """A random cut of ``outer``: as a choice of the units of ``supernet``, and of those of its sub-network."""
    rng = np.random.default_rng(seed)
    elastic = "head_dim" in supernet.elastic_axes
    head_dim = outer.layers[0].head_dim
    head_dim = int(rng.choice(range(2, head_dim + 1, 2))) if elastic else head_dim
    kept = sorted(rng.permutation(outer.num_layers)[: rng.integers(1, outer.num_layers + 1)].tolist())
    shapes = [
        [head_dim if axis == 2 else int(rng.integers(1, size + 1)) for axis, size in enumerate(outer.layers[i].shape)]
        for i in kept
    ]
    hidden = int(rng.integers(8, outer.hidden + 1))
    direct = (LayerChoice(outer.layers[i].index, *shape) for i, shape in zip(kept, shapes, strict=True))
    inner = (LayerChoice(i, *shape) for i, shape in zip(kept, shapes, strict=True))
    return Architecture(hidden, tuple(direct)), Architecture(hidden, tuple(inner))


@pytest.mark.parametrize("name", FAMILIES)
def test_cut_twice_is_cut_once(name, tmp_path):
    supernet = build(name)
    for seed, first in enumerate(random_architectures(supernet, 3, seed=7)):
        direct, second = cut_within(supernet, first, seed)
        once = supernet.extract(direct)
        save_pretrained(supernet.extract(first), tmp_path / "first")
        for again in (Supernet(supernet.extract(first)), Supernet.from_pretrained(tmp_path / "first")):
            twice = again.extract(second)
            assert twice.config.nas_llm == once.config.nas_llm
            assert_close(logits_of(twice, batch()), logits_of(once, batch()))
            assert again.num_parameters(second) == supernet.num_parameters(direct)
            save_pretrained(twice, tmp_path / "twice")
            assert_close(logits_of(from_pretrained(tmp_path / "twice"), batch()), logits_of(once, batch()))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cut_of_a_cut_is_stock_where_the_same_cut_of_the_whole_is(name):
    supernet = build(name)
    uniform, shape = small_uniform(supernet), supernet.largest().layers[0]
    halves = "head_dim" in supernet.elastic_axes and name not in ("gpt2", "opt", "opt-projected")  # width follows heads
    head_dim = shape.head_dim // 2 if halves else shape.head_dim
    uniform = replace(uniform, layers=tuple(replace(layer, head_dim=head_dim) for layer in uniform.layers))
    uneven = tuple(replace(shape, index=i, head_dim=head_dim, ffn=40 + i) for i in range(4))
    again = Supernet(supernet.extract(Architecture(44, uneven)))
    assert is_stock(supernet.extract(uniform))
    assert is_stock(again.extract(uniform))


def test_a_projected_embedding_cut_to_the_width_of_its_projection_can_be_cut_again(tmp_path):
    supernet = build("opt-projected")
    shape = supernet.largest().layers[0].shape
    first = Architecture(24, tuple(LayerChoice(i, *shape) for i in range(4)))
    second = Architecture(16, (LayerChoice(1, 2, 1, 8, 40),))
    save_pretrained(supernet.extract(first), tmp_path / "first")
    expected = logits_of(supernet.extract(second), batch())
    for model in (supernet.extract(first), from_pretrained(tmp_path / "first")):
        assert_close(logits_of(Supernet(model).extract(second), batch()), expected)


def test_counting_is_fast_for_32_layers_on_the_meta_device():
    config = AutoConfig.for_model(
        "llama",
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    with torch.device("meta"):
        supernet = Supernet(AutoModelForCausalLM.from_config(config))
    assert supernet.num_parameters(supernet.largest()) == 8_030_261_248
    rng = np.random.default_rng(0)
    space = SearchSpace.per_layer(supernet)
    architectures = [space.sample(rng) for _ in range(4000)]
    rates = []
    for _ in range(3):
        start = time.process_time()  # the machine may be busy
        for architecture in architectures:
            supernet.num_parameters(architecture)
        rates.append(len(architectures) / (time.process_time() - start))
    assert max(rates) > 20_000


def test_unknown_families_and_structures_are_refused_by_name():
    config = AutoConfig.for_model("bloom", hidden_size=32, n_layer=1, n_head=2, vocab_size=64)
    with pytest.raises(ValueError, match=r"'bloom' is not known.*llama.*qwen3"):
        Supernet(AutoModelForCausalLM.from_config(config))
    with pytest.raises(ValueError, match="qk_layernorm"):
        build("stablelm", qk_layernorm=True)
    supernet = build("phi3")
    full = supernet.largest()
    wide = Architecture(full.hidden, (LayerChoice(0, *full.layers[0].shape[:3], 81),))
    with pytest.raises(ValueError, match="does not fit"), supernet.activate(wide):
        pass
    shape = full.layers[0].shape
    short = Architecture(full.hidden, (LayerChoice(0, *shape[:2], 4, shape[3]),))
    with pytest.raises(ValueError, match="head_dim"), supernet.activate(short):
        pass


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gpt_neox"])
def test_a_decoder_without_its_output_head_is_refused_by_name(model_type):
    config = AutoConfig.for_model(model_type, **CONFIGS[model_type])
    model = AutoModel.from_config(config)
    with pytest.raises(ValueError, match=rf"{type(model).__name__} has no output head.*AutoModelForCausalLM"):
        Supernet(model)


def test_a_model_that_is_wrapped_already_is_refused_and_a_refused_one_is_as_it_was():
    supernet = build("llama")
    for wrapped in (supernet.model, supernet):
        with pytest.raises(ValueError, match="a Supernet is around this model already: use that one"):
            Supernet(wrapped)
    inputs, before = batch(), logits_of(supernet.model, batch())
    assert torch.equal(logits_of(Supernet(supernet.extract(supernet.largest())).model, inputs), before)
    model = build("llama").extract(supernet.largest())
    model.model.layers[2].mlp.gate = torch.nn.Linear(48, 1)
    for _ in range(2):  # the first try has left nothing elastic behind
        with pytest.raises(ValueError, match=r"'model.layers.2.mlp.gate' is not in the table"):
            Supernet(model)
    del model.model.layers[2].mlp.gate
    assert torch.equal(logits_of(Supernet(model).model, inputs), before)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda supernet: pickle.loads(pickle.dumps(supernet))])
def test_copies_and_pickles_are_super_networks_of_their_own(name, copied):
    supernet = build(name)
    (architecture,) = random_architectures(supernet, 1, seed=4)
    other = copied(supernet)
    with supernet.activate(architecture) as model:
        active = logits_of(model, batch())
        assert other.model.config.to_dict() == other._parts.config.to_dict()  # not activated with it
    with other.activate(architecture) as model:
        assert torch.equal(logits_of(model, batch()), active)
    assert other.num_parameters(architecture) == supernet.num_parameters(architecture)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    with supernet.activate(architecture) as model:
        assert torch.equal(logits_of(model, batch()), active)


def misfits(full: Architecture) -> dict[str, Architecture]:
    """One unit too many of every axis, and nothing at all."""
    shape = full.layers[0].shape
    found = {
        f"axis {axis}": tuple(LayerChoice(i, *(n + (p == axis) for p, n in enumerate(shape))) for i in range(2))
        for axis in range(4)
    }
    found |= {"index": (LayerChoice(full.num_layers, *shape),), "depth": ()}
    wide = {"hidden": Architecture(full.hidden + 1, full.layers)}
    return {name: Architecture(full.hidden, layers) for name, layers in found.items()} | wide


@pytest.mark.parametrize("counted_before", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_larger_than_the_network_is_not_counted(name, counted_before):
    supernet = build(name)
    if counted_before:
        supernet.macs(supernet.largest(), batch_size=1, sequence_length=8)
        supernet.num_parameters(supernet.largest())
    for misfit in misfits(supernet.largest()).values():
        for count in (
            supernet.num_parameters,
            supernet.weight_bytes,
            partial(supernet.macs, batch_size=1, sequence_length=8),
            partial(supernet.kv_cache_bytes, batch_size=1, sequence_length=8),
        ):
            with pytest.raises(ValueError, match="does not fit into the network"):
                count(misfit)


def test_a_shape_that_fits_one_layer_of_an_uneven_network_is_not_counted_in_another():
    layers = (LayerChoice(0, 3, 2, 8, 80), LayerChoice(1, 2, 2, 8, 40))
    uneven = Supernet(build("llama").extract(Architecture(48, layers)))
    assert uneven.num_parameters(Architecture(48, layers[:1])) > 0
    with pytest.raises(ValueError, match="does not fit into the network"):
        uneven.num_parameters(Architecture(48, (LayerChoice(1, 3, 2, 8, 80),)))


@pytest.mark.parametrize("sizes", [{"batch_size": 0, "sequence_length": 8}, {"batch_size": 1, "sequence_length": -1}])
def test_sizes_below_one_are_refused_with_their_key(sizes):
    supernet = build("llama")
    key, size = next((key, size) for key, size in sizes.items() if size < 1)
    for count in (supernet.macs, supernet.kv_cache_bytes):
        with pytest.raises(ValueError, match=f"{key}={size}: it must be at least 1"):
            count(supernet.largest(), **sizes)


def test_sort_refuses_foreign_scores():
    supernet = build("llama")
    with pytest.raises(ValueError, match="no such axis"):
        supernet.sort({"layers.9.ffn": torch.rand(80)})
    with pytest.raises(ValueError, match="shape"):
        supernet.sort({"hidden": torch.rand(49)})
    with pytest.raises(ValueError, match="finite"):
        supernet.sort({"hidden": torch.full((48,), float("nan"))})
