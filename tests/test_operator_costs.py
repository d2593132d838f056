"""Costs of operators add up to those of the assembled network, counted from its parameters and its own products."""

from __future__ import annotations

import copy
from itertools import product

import numpy as np
import pytest
import torch
from test_families import FAMILIES, build
from test_operator_assembly import candidates
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from nas_llm.models.operator_assembly import assemble
from nas_llm.models.operator_modules import build_sublayer
from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import (
    SUBLAYERS,
    Ffn,
    Heads,
    Linear,
    Operator,
    OperatorNetwork,
    Quantized,
    Sparse,
    Teacher,
)
from nas_llm.operators.costs import OperatorCosts
from nas_llm.quantization.rtn import rounded

TOKENS = {"batch_size": 2, "sequence_length": 6}


def pool(supernet: Supernet) -> dict[tuple[int, str], list[Operator]]:
    places = product(range(supernet.largest().num_layers), SUBLAYERS)
    return {place: found for place in places if (found := candidates(supernet, place[1]))}


def draw(supernet: Supernet, operators, seed: int) -> OperatorNetwork:
    rng = np.random.default_rng(seed)
    chosen = {place: [Teacher(), *found][rng.integers(len(found) + 1)] for place, found in operators.items()}
    return OperatorNetwork.of(chosen, supernet.largest().num_layers)


@pytest.mark.parametrize("name", FAMILIES)
def test_costs_add_up_to_those_of_the_assembled_network(name):
    supernet = build(name)
    supernet.model.set_attn_implementation("eager")  # the counter does not see into fused attention
    operators = pool(supernet)
    costs = OperatorCosts.of(supernet, operators, **TOKENS)
    for seed in range(4):
        network = draw(supernet, operators, seed)
        small = assemble(supernet, network)
        again = Supernet(copy.deepcopy(small))
        full = again.largest()
        assert costs.params.whole(network) == sum(p.numel() for p in small.parameters())
        assert costs.memory.whole(network) == again.weight_bytes(full)
        assert costs.kv_cache.whole(network) == again.kv_cache_bytes(full, **TOKENS)
        assert costs.macs.whole(network) == again.macs(full, **TOKENS) == multiplied(small)
        blocks = small.get_submodule(supernet.layers_path)
        assert costs.params.body(network) == sum(p.numel() for p in blocks.parameters())


def multiplied(model: torch.nn.Module) -> int:
    """Multiply-accumulates of the products that torch runs, those of the rotary angles left out."""
    ids = torch.randint(3, 96, (TOKENS["batch_size"], TOKENS["sequence_length"]))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    by_module = counter.get_flop_counts()
    angles = sum(sum(ops.values()) for path, ops in by_module.items() if path.endswith("rotary_emb"))
    return (counter.get_total_flops() - angles) // 2


@pytest.mark.parametrize("name", ["llama", "phi3", "qwen2", "olmo2"])
@pytest.mark.parametrize("projections", ["in", "out", "both"])
@pytest.mark.parametrize("bits", [3, 4])
def test_quantised_operators_take_their_packed_bytes(name, projections, bits):
    supernet = build(name)
    operator = Quantized(bits, 8, projections)
    operators = {place: [operator] for place in product(range(4), SUBLAYERS)}
    network = OperatorNetwork.of({(0, "attention"): operator, (2, "mlp"): operator}, 4)
    last = {"attention": "o_proj", "mlp": "down_proj"}

    def make(layer, sublayer, operator):
        module = build_sublayer(supernet, layer, sublayer, operator)
        for child, linear in list(module.named_children()):
            part = "out" if child == last[sublayer] else "in"
            if isinstance(linear, torch.nn.Linear) and projections in (part, "both"):
                setattr(module, child, QuantizedLinear.of(rounded(linear.weight.detach(), bits, 8), linear.bias))
        return module

    again = Supernet(assemble(supernet, network, make))
    costs = OperatorCosts.of(supernet, operators, **TOKENS)
    assert costs.memory.whole(network) == again.weight_bytes(again.largest())
    assert costs.memory.whole(network) < costs.memory.teacher
    assert costs.params.whole(network) == again.num_parameters(again.largest()) == costs.params.teacher
    assert costs.macs.whole(network) == again.macs(again.largest(), **TOKENS) == costs.macs.teacher


def test_sparse_operators_cost_what_dense_ones_do():
    supernet = build("llama")
    costs = OperatorCosts.of(supernet, {(1, "mlp"): [Sparse("2:4", "both")]}, **TOKENS)
    for table in costs.tables.values():
        assert table.values[1, "mlp"][Sparse("2:4", "both")] == table.values[1, "mlp"][Teacher()]


def test_a_quantised_teacher_counts_its_packed_bytes():
    supernet = build("llama")
    name = "model.layers.1.mlp.down_proj"
    linear = supernet.model.get_submodule(name)
    supernet.quantize_module(name, QuantizedLinear.of(rounded(linear.weight.detach(), 4, 8), linear.bias))
    costs = OperatorCosts.of(supernet, {(1, "mlp"): [Linear()]}, **TOKENS)
    assert costs.memory.teacher == supernet.weight_bytes(supernet.largest())
    dense = OperatorCosts.of(build("llama"), {(1, "mlp"): [Linear()]}, **TOKENS)
    assert costs.memory.values[1, "mlp"][Teacher()] < dense.memory.values[1, "mlp"][Teacher()]
    assert costs.memory.values[1, "mlp"][Linear()] == dense.memory.values[1, "mlp"][Linear()]


def test_a_network_of_operators_is_a_teacher_again():
    first = build("llama")
    network = OperatorNetwork.of({(0, "attention"): Linear(), (1, "mlp"): Ffn(40)}, 4)
    supernet = Supernet(assemble(first, network))
    costs = OperatorCosts.of(supernet, {(2, "attention"): [Heads(2, 2, 8)]}, **TOKENS)
    assert costs.params.teacher == sum(p.numel() for p in supernet.model.parameters())
    assert costs.kv_cache.teacher == supernet.kv_cache_bytes(supernet.largest(), **TOKENS)
    assert costs.macs.teacher == supernet.macs(supernet.largest(), **TOKENS)


def test_costs_of_a_large_network_need_no_weights():
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = AutoConfig.for_model("llama", num_hidden_layers=32, vocab_size=128256, tie_word_embeddings=False, **shape)
    with torch.device("meta"):
        supernet = Supernet(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))
    costs = OperatorCosts.of(supernet, {(0, "mlp"): [Ffn(7168)]}, batch_size=1, sequence_length=8192)
    assert costs.params.teacher == 8_030_261_248  # what the model card of Llama 3.1 8B says, in full
    assert costs.memory.teacher == 2 * 8_030_261_248
    assert costs.kv_cache.teacher == 2**30  # 128 KiB a token
    assert costs.params.outside == 2 * 128256 * 4096 + 4096


@pytest.mark.parametrize(
    ("place", "operator", "sizes", "message", "family"),
    [
        ((0, "mlp"), Heads(1, 1, 8), TOKENS, "layer 0, mlp", "llama"),
        ((0, "mlp"), Quantized(4, 7, "both"), TOKENS, "does not divide the width 48", "llama"),
        ((0, "mlp"), Ffn(8), TOKENS | {"batch_size": 0}, "batch_size=0", "llama"),
        ((1, "attention"), Quantized(4, 8, "in"), TOKENS, "layer 1, attention.*no dense linear layers", "gpt2"),
    ],
)
def test_misfits_are_refused(place, operator, sizes, message, family):
    with pytest.raises(ValueError, match=message):
        OperatorCosts.of(build(family), {place: [operator]}, **sizes)


def test_a_network_with_an_operator_of_no_pool_is_refused():
    costs = OperatorCosts.of(build("llama"), {(0, "mlp"): [Ffn(40)]}, **TOKENS)
    assert costs.params.whole(OperatorNetwork.teacher(4)) == costs.params.teacher
    for operators in ({(0, "mlp"): Ffn(20)}, {(1, "mlp"): Ffn(40)}):
        with pytest.raises(ValueError, match="has no operator"):
            costs.params.whole(OperatorNetwork.of(operators, 4))
