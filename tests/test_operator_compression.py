"""Networks of operators made sparse or quantised as any other network (paper 3, table 5), and reloaded in a fresh
process."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_families import FAMILIES, assert_close, batch, build, logits_of
from test_operator_assembly import assembled, random_networks

from nas_llm.models.block_walk import projections
from nas_llm.models.quantized_linear import quantized_modules
from nas_llm.models.saving import save_pretrained
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import Ffn, Heads, Identity, Linear, OperatorNetwork
from nas_llm.quantization.gptq import GPTQ
from nas_llm.quantization.rtn import RoundToNearest
from nas_llm.sparsity.magnitude import Magnitude
from nas_llm.sparsity.sparsegpt import SparseGPT
from nas_llm.sparsity.wanda import Wanda

NETWORK = OperatorNetwork.of(
    {
        (0, "attention"): Heads(2, 1, 4),
        (0, "mlp"): Linear(),
        (1, "attention"): Identity(),
        (1, "mlp"): Identity(),
        (2, "attention"): Linear(),
        (3, "mlp"): Ffn(40),
    },
    4,
)


def network_of_operators() -> Supernet:
    return Supernet(assembled(build("llama"), NETWORK))


def batches() -> list[dict[str, torch.Tensor]]:
    return [batch()]


RELOAD = """
import sys, torch
from safetensors.torch import load_file, save_file
import nas_llm
from nas_llm.models.quantized_linear import quantized_modules
inputs, folder = load_file(sys.argv[1] + "/inputs.safetensors"), sys.argv[1] + "/out"
model = nas_llm.from_pretrained(folder)
with torch.no_grad():
    logits = model(**inputs, use_cache=False).logits
found = {f"{name}.codes": layer.quantized.codes.contiguous() for name, layer in quantized_modules(model).items()}
found |= {f"{name}.zeros": (w == 0).to(torch.uint8) for name, w in model.named_parameters()}
save_file({"logits": logits, **found}, sys.argv[1] + "/found.safetensors")
"""


def reloaded(supernet: Supernet, folder) -> dict[str, torch.Tensor]:
    save_file(batch(), folder / "inputs.safetensors")
    save_pretrained(supernet.extract(supernet.largest()), folder / "out")
    subprocess.run([sys.executable, "-c", RELOAD, str(folder)], check=True)
    return load_file(folder / "found.safetensors")


@pytest.mark.parametrize("method", [Wanda, SparseGPT, Magnitude])
def test_two_of_four_weights_are_zero_in_every_operator_and_stay_so(method, tmp_path):
    supernet = network_of_operators()
    method(pattern="2:4")(supernet, batches())
    names = [p.name for of_block in projections(supernet) for p in of_block]
    assert {"model.layers.0.mlp.linear", "model.layers.2.self_attn.linear"} <= set(names)
    assert not [name for name in names if name.startswith("model.layers.1.")]
    found = reloaded(supernet, tmp_path)
    for name in names:
        zeros = found[f"{name}.weight.zeros"]
        assert (zeros.unflatten(1, (-1, 4)).sum(-1) == 2).all(), name
    assert_close(found["logits"], logits_of(supernet.model, batch()))
    assert Supernet(copy.deepcopy(supernet.extract(supernet.largest()))).operators == NETWORK


@pytest.mark.parametrize(
    "method", [GPTQ(bits=4, group_size=4), RoundToNearest(bits=8, group_size=8), RoundToNearest(bits=3, group_size=4)]
)
def test_codes_of_every_operator_are_packed_and_stay_the_same(method, tmp_path):
    supernet = network_of_operators()
    names = {p.name for of_block in projections(supernet) for p in of_block}
    method(supernet, batches())
    quantized = quantized_modules(supernet.model)
    assert quantized.keys() == names
    expected = {name: layer.quantized.codes.clone() for name, layer in quantized.items()}
    found = reloaded(supernet, tmp_path)
    for name, codes in expected.items():
        assert torch.equal(found[f"{name}.codes"], codes), name
    assert_close(found["logits"], logits_of(supernet.model, batch()))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    beside = ("weight_shape", "rotary_pairs")  # integers that say how weights are read
    weights = [tensor.nbytes for name, tensor in stored.items() if not name.endswith(beside)]
    assert supernet.weight_bytes(supernet.largest()) == sum(weights)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_walk_sees_what_each_projection_of_a_random_network_reads(name):
    """Sparsified block by block: every linear module of the blocks has half its weights left, and nothing is NaN."""
    (network,) = random_networks(build(name), 1, seed=5)
    supernet = Supernet(assembled(build(name), network))
    Wanda(sparsity=0.5)(supernet, batches())
    for of_block in projections(supernet):
        for projection in of_block:
            assert (projection.weight == 0).float().mean().item() == pytest.approx(0.5, abs=0.05), projection.name
    assert logits_of(supernet.model, batch()).isfinite().all()
