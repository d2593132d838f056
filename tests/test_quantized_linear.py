"""The quantised layer: alone, in transformers' models, under peft's LoRA, inside super-networks, in files."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_families import batch, build, logits_of
from torch import nn

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.lightning.output import output_layer
from nas_llm.models.fingerprint import fingerprint
from nas_llm.models.loading import from_pretrained
from nas_llm.models.magnitude import Magnitude
from nas_llm.models.quantized_linear import QuantizedLinear, quantized_modules
from nas_llm.models.saving import save_pretrained
from nas_llm.models.stock import is_stock
from nas_llm.models.supernet import Supernet
from nas_llm.quantization.rtn import RoundToNearest, rounded
from nas_llm.search_space import SearchSpace

FAMILIES = ["llama", "llama-tied", "gpt_neox", "opt", "phi3", "gemma3_text"]


def quantized(name: str = "llama", bits: int = 4, **settings) -> Supernet:
    supernet = build(name)
    RoundToNearest(bits, 8, **settings)(supernet)
    return supernet


def dense_twin(name: str = "llama", bits: int = 4) -> Supernet:
    """The same network with the dequantised weights as parameters."""
    supernet, other = build(name), quantized(name, bits)
    for module_name, layer in quantized_modules(other.model).items():
        supernet.model.get_submodule(module_name).weight.data.copy_(layer.weight)
    return supernet


def layer(bits: int = 4, bias: bool = True) -> tuple[QuantizedLinear, nn.Linear]:
    torch.manual_seed(0)
    dense = nn.Linear(24, 10, bias=bias)
    made = QuantizedLinear.of(rounded(dense.weight.detach(), bits, 8), dense.bias)
    dense.weight.data.copy_(made.weight)
    return made, dense


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_and_differentiates_as_the_dense_layer(bits: int, bias: bool) -> None:
    made, dense = layer(bits, bias)
    x = torch.randn(2, 5, 24, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    got, expected = made(x), dense(twin)
    assert torch.equal(got, expected)
    upstream = torch.randn_like(got)
    got.backward(upstream)
    bias_gradient = None if made.bias is None else made.bias.grad.clone()
    dense.zero_grad()
    expected.backward(upstream)
    torch.testing.assert_close(x.grad, twin.grad)
    if bias:
        torch.testing.assert_close(bias_gradient, dense.bias.grad)
    assert isinstance(made, nn.Linear)
    assert [name for name, _ in made.named_parameters()] == (["bias"] if bias else [])


def test_no_dense_weight_is_kept_between_forward_and_backward() -> None:
    made, dense = layer()
    x = torch.randn(3, 24, requires_grad=True)

    def saved(module: nn.Module) -> int:
        numbers = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: numbers.append(t.numel()) or t, lambda t: t):
            module(x)
        return sum(numbers)

    dense.requires_grad_(False)
    assert saved(dense) >= 240
    assert saved(made) == 0


def test_precision_is_that_of_the_activations_and_codes_stay_when_the_layer_is_cast() -> None:
    made, _ = layer()
    before = copy.deepcopy(made.state_dict())
    assert made(torch.randn(3, 24, dtype=torch.float64)).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made(torch.randn(3, 24)).dtype == torch.bfloat16
    made.to(torch.bfloat16)
    assert made(torch.randn(3, 24, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert made.weight_scale.dtype == made.weight.dtype == torch.bfloat16
    for name in ("weight_packed", "weight_zero_point", "weight_shape"):
        assert torch.equal(made.state_dict()[name], before[name])
        assert made.state_dict()[name].dtype == before[name].dtype


def test_its_state_dict_round_trips_and_its_bytes_are_those_of_its_integers() -> None:
    made, _ = layer()
    other = QuantizedLinear(24, 10, bits=4, group_size=8, bias=nn.Parameter(torch.zeros(10)))
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.weight, made.weight)
    assert made.num_weights == 240
    assert made.weight_bytes == 240 // 2 + 30 * 4 + 3 * 2 * 4  # codes, scales; zeros: ten of 4 bits in two words
    with pytest.raises((AttributeError, KeyError, TypeError)):
        made.weight = nn.Parameter(torch.zeros(10, 24))
    with pytest.raises(ValueError, match="group_size=5 does not divide the width 24"):
        QuantizedLinear(24, 10, bits=4, group_size=5)


@pytest.mark.parametrize("name", FAMILIES)
def test_inside_models_it_is_the_dense_network_of_its_weights(name: str) -> None:
    supernet, twin = quantized(name), dense_twin(name)
    layers = quantized_modules(supernet.model)
    assert len(layers) == sum(isinstance(m, nn.Linear) for block in twin.blocks for m in block.modules())
    inputs = batch()
    assert torch.equal(logits_of(supernet.model, inputs), logits_of(twin.model, inputs))
    generated = supernet.model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert torch.equal(generated, twin.model.generate(**inputs, max_new_tokens=5, do_sample=False))
    full = supernet.largest()
    assert supernet.num_parameters(full) == twin.num_parameters(full)
    assert supernet.macs(full, batch_size=1, sequence_length=4) == twin.macs(full, batch_size=1, sequence_length=4)
    weights = sum(m.num_weights for m in layers.values())
    expected = (twin.num_parameters(full) - weights) * 4 + sum(m.weight_bytes for m in layers.values())
    assert supernet.weight_bytes(full) == expected < twin.weight_bytes(full)
    restored = build(name)
    RoundToNearest(4, 8)(restored)
    for block in restored.blocks:
        for module in block.modules():
            if isinstance(module, QuantizedLinear):
                module.weight_packed.zero_()
    restored.model.load_state_dict(supernet.model.state_dict())
    assert torch.equal(logits_of(restored.model, inputs), logits_of(supernet.model, inputs))
    supernet.to(torch.bfloat16)
    assert logits_of(supernet.model, inputs).dtype == torch.bfloat16


def without_blocks(supernet: Supernet, *dropped: int) -> Architecture:
    full = supernet.largest()
    return Architecture(full.hidden, tuple(layer for layer in full.layers if layer.index not in dropped))


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_whole_layers_may_be_dropped(name: str) -> None:
    supernet, twin = quantized(name), dense_twin(name)
    inputs, small = batch(), without_blocks(quantized(name), 0, 2)
    with supernet.activate(small) as model, twin.activate(small) as other:
        assert torch.equal(logits_of(model, inputs), logits_of(other, inputs))
    extracted = supernet.extract(small)
    assert all(type(m) is QuantizedLinear for m in quantized_modules(extracted).values())
    assert torch.equal(logits_of(extracted, inputs), logits_of(twin.extract(small), inputs))
    assert supernet.weight_bytes(small) < supernet.weight_bytes(supernet.largest())
    again = Supernet(extracted)
    assert again.num_parameters(again.largest()) == supernet.num_parameters(small)


def test_an_architecture_that_would_cut_a_quantised_weight_is_refused() -> None:
    supernet = quantized(targets=["gate_proj", "up_proj"])
    full = supernet.largest()
    first = full.layers[0]
    cut_ffn = LayerChoice(0, first.kv_groups, first.heads_per_group, first.head_dim, 40)
    fewer_heads = LayerChoice(0, 1, first.heads_per_group, first.head_dim, first.ffn)
    line = r"model\.layers\.0\.mlp\.gate_proj is quantised.* has ffn 40 of 80: .*search_space=depth_only"
    for act in (supernet.extract, lambda a: supernet.activate(a).__enter__()):
        with pytest.raises(ValueError, match=line):
            act(Architecture(full.hidden, (cut_ffn, *full.layers[1:])))
    with pytest.raises(ValueError, match="has hidden 40 of 48"):
        supernet.refuse_cut(Architecture(40, full.layers))
    with supernet.activate(Architecture(full.hidden, (fewer_heads, *full.layers[1:]))) as model:  # not quantised
        assert logits_of(model, batch()).isfinite().all()


def test_sorting_may_order_layers_and_not_the_channels_of_quantised_weights() -> None:
    supernet = quantized()
    before = logits_of(supernet.model, batch())
    supernet.sort({"layers": torch.tensor([1.0, 4.0, 3.0, 2.0])})
    assert supernet.layer_order == (1, 2, 3, 0)
    with pytest.raises(ValueError, match=r"q_proj is quantised.*cannot be sorted: sort before quantising"):
        supernet.sort({"hidden": torch.arange(48.0)})
    with pytest.raises(ValueError, match="down_proj is quantised|gate_proj is quantised"):
        supernet.sort({"layers.2.ffn": torch.arange(80.0)})
    supernet.sort({"hidden": torch.arange(48.0).flip(0)})  # the order that they have
    assert torch.equal(logits_of(supernet.model, batch()), before)


def test_what_reads_weights_sees_the_dequantised_ones() -> None:
    supernet, twin = quantized(), dense_twin()
    assert fingerprint(supernet) != fingerprint(build("llama"))
    assert fingerprint(supernet) == fingerprint(quantized())
    space = SearchSpace.joint(supernet)
    full = supernet.largest()
    assert Magnitude.of(supernet, space)(full) == pytest.approx(Magnitude.of(twin, space)(full), rel=1e-6)
    with_head = quantized(targets=["lm_head"])
    found = output_layer(with_head.model, 48, torch.float32)
    assert torch.equal(found.weight, with_head.model.lm_head.weight)


def test_pefts_adapters_wrap_it_and_alone_are_trained() -> None:
    supernet, inputs = quantized(), batch()
    before = logits_of(supernet.model, inputs)
    packed = {name: layer.weight_packed.clone() for name, layer in quantized_modules(supernet.model).items()}
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(supernet.model, config)
    assert torch.equal(logits_of(model, inputs), before)  # lora_B begins at zero
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert any(float(p.grad.abs().sum()) > 0 for p in trained.values())
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.1)
    assert not torch.equal(logits_of(model, inputs), before)
    assert all(
        torch.equal(layer.weight_packed, packed[name.replace("base_model.model.", "").replace(".base_layer", "")])
        for name, layer in quantized_modules(model).items()
    )
    with supernet.activate(without_blocks(supernet, 1)) as small:
        assert logits_of(small, inputs).isfinite().all()
    with model.disable_adapter():
        assert torch.equal(logits_of(model, inputs), before)


LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    inputs = torch.load(sys.argv[1], weights_only=True)
    torch.save(model(**inputs).logits.detach(), folder + "/logits.pt")
assert not any(name.startswith("nas_llm") for name in sys.modules)
"""


def test_the_stock_loader_reads_exported_models_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="needs the extra 'quantized': compressed-tensors")
    torch.save(batch(), tmp_path / "inputs.pt")
    cases = [("llama", 4, torch.float32), ("llama-tied", 2, torch.float32), ("gpt_neox", 3, torch.float32)]
    cases += [("phi3", 8, torch.float32), ("llama", 4, torch.bfloat16), ("opt", 5, torch.float32)]
    folders = []
    for number, (name, bits, dtype) in enumerate(cases):
        model = quantized(name, bits).to(dtype)
        small = model.extract(without_blocks(model, 1))
        folders.append(tmp_path / str(number))
        assert is_stock(small)
        save_pretrained(small, folders[-1])
        reloaded = from_pretrained(folders[-1])
        assert reloaded.dtype == dtype
        layers = quantized_modules(reloaded)
        assert {layer.bits for layer in layers.values()} == {bits}
        assert layers.keys() == quantized_modules(small).keys()
        assert torch.equal(logits_of(reloaded, batch()), logits_of(small, batch()))
        save_pretrained(reloaded, folders[-1])  # and again
    arguments = [str(tmp_path / "inputs.pt"), *map(str, folders)]
    done = subprocess.run([sys.executable, "-c", LOAD, *arguments], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    for folder, (_, _, dtype) in zip(folders, cases, strict=True):
        stock = torch.load(folder / "logits.pt", weights_only=True)
        (folder / "logits.pt").unlink()
        ours = logits_of(from_pretrained(folder), batch())
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        assert (stock - ours).abs().max() <= tolerance * ours.abs().max()


def test_models_that_are_not_stock_and_layers_of_several_widths_are_read_back(tmp_path: Path) -> None:
    supernet = build("gpt_neox")
    RoundToNearest(3, 8, targets=["query_key_value"])(supernet)
    RoundToNearest(8, 4, targets=["dense_h_to_4h", "embed_out", "lm_head"][:1])(supernet)
    full = supernet.largest()
    model = supernet.extract(full)
    save_pretrained(model, tmp_path / "mixed")
    reloaded = from_pretrained(tmp_path / "mixed")
    found = {(layer.bits, layer.group_size) for layer in quantized_modules(reloaded).values()}
    assert found == {(3, 8), (8, 4)}
    assert torch.equal(logits_of(reloaded, batch()), logits_of(model, batch()))
    uneven = build("llama")
    RoundToNearest(6, 8, targets=["down_proj", "up_proj", "gate_proj"])(uneven)
    first = uneven.largest().layers[0]
    fewer = LayerChoice(0, 1, first.heads_per_group, first.head_dim, first.ffn)
    small = uneven.extract(Architecture(uneven.largest().hidden, (fewer, *uneven.largest().layers[2:])))
    assert not is_stock(small)
    save_pretrained(small, tmp_path / "uneven")
    again = from_pretrained(tmp_path / "uneven", dtype=torch.bfloat16)
    assert {layer.bits for layer in quantized_modules(again).values()} == {6}
    assert again.dtype == torch.bfloat16
    assert torch.equal(logits_of(from_pretrained(tmp_path / "uneven"), batch()), logits_of(small, batch()))


def test_a_quantised_output_head_is_read_back(tmp_path: Path) -> None:
    """gpt_neox saves it under another name than its module has."""
    supernet = build("gpt_neox")
    head = next(n for n, m in supernet.model.named_modules() if m is supernet.model.get_output_embeddings())
    RoundToNearest(4, 8, targets=[head])(supernet)
    model = supernet.extract(supernet.largest())
    save_pretrained(model, tmp_path / "head")
    reloaded = from_pretrained(tmp_path / "head")
    assert list(quantized_modules(reloaded)) == [head]
    assert torch.equal(logits_of(reloaded, batch()), logits_of(model, batch()))


def test_a_super_network_is_saved_and_loaded(tmp_path: Path) -> None:
    supernet = quantized()
    supernet.sort({"layers": torch.tensor([1.0, 4.0, 3.0, 2.0])})
    supernet.save(tmp_path / "net")
    loaded = Supernet.load(tmp_path / "net")
    assert loaded.layer_order == supernet.layer_order
    assert torch.equal(logits_of(loaded.model, batch()), logits_of(supernet.model, batch()))
    assert fingerprint(loaded) == fingerprint(supernet)


def test_schemes_that_are_not_read_are_one_line(tmp_path: Path) -> None:
    supernet = quantized()
    save_pretrained(supernet.extract(supernet.largest()), tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    whole = json.loads(file.read_text())
    for key, value, says in (
        ("symmetric", True, "symmetric"),
        ("num_bits", 16, "read are 2, 4 and 8 bits"),
        ("group_size", 16, "is of another shape"),
    ):
        changed = copy.deepcopy(whole)
        changed["quantization_config"]["config_groups"]["group_0"]["weights"][key] = value
        file.write_text(json.dumps(changed))
        with pytest.raises(
            ValueError, match=f"quantization_config is not one that is read.*{says}.*export it again"
        ) as e:
            from_pretrained(tmp_path / "m")
        assert "\n" not in str(e.value)
    file.write_text(json.dumps(whole))
    weights = load_file(tmp_path / "m" / "model.safetensors")
    other = {name: value for name, value in weights.items() if not name.endswith("weight_packed")}
    save_file(other, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="none of its weights are packed"):
        from_pretrained(tmp_path / "m")
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    changed = copy.deepcopy(whole)
    del changed["quantization_config"]["config_groups"]
    file.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="quantization_config is not one that is read"):
        from_pretrained(tmp_path / "m")
