"""Needs of operators counted on real modules, and groups that hold every operator once within the limit."""

from __future__ import annotations

import pytest
import torch
from operator_fixtures import pool, teacher
from torch import nn
from transformers.pytorch_utils import Conv1D

from nas_llm.models.operator_modules import build_sublayer
from nas_llm.operator_network import Ffn, Identity, Sparse, Teacher
from nas_llm.operators.groups import dealt, groups_of
from nas_llm.operators.needs import Needs


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2", "gpt2"])
def test_parameters_and_macs_are_those_of_the_modules(name):
    supernet = teacher(name)
    needs, full = Needs(supernet, 3, 10), supernet.largest()
    for place, operators in pool(supernet).items():
        for operator in operators:
            module, need = build_sublayer(supernet, *place, operator), needs.of(place, operator)
            assert need.params == sum(parameter.numel() for parameter in module.parameters())
            weights = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear | Conv1D))
            assert need.macs >= weights
            assert (need.macs == weights) == (place[1] == "mlp" or not weights or operator.name == "linear")
    blocks = supernet.macs(full, batch_size=1, sequence_length=10) / 10 - full.hidden * supernet.config.vocab_size
    assert sum(needs.layer_macs) == blocks
    assert all(not parameter.is_meta for parameter in supernet.parameters())


def test_operators_that_are_not_trained_hold_their_weights_alone():
    needs = Needs(teacher(), 3, 10)
    ffn, sparse = needs.of((0, "mlp"), Ffn(40)), needs.of((0, "mlp"), Sparse("2:4", "in"))
    assert ffn.held_bytes == 12 * ffn.params
    assert sparse.held_bytes == 4 * sparse.params
    assert sparse.step_flops == 0
    assert ffn.step_flops == 6 * ffn.macs
    assert Needs(teacher(), 3, 10, accumulates=True).of((0, "mlp"), Ffn(40)).held_bytes == 16 * ffn.params
    half = Needs(teacher().to(torch.bfloat16), 3, 10)
    assert half.of((0, "mlp"), Ffn(40)).held_bytes == ffn.held_bytes
    assert half.of((0, "mlp"), Sparse("2:4", "in")).held_bytes == 2 * sparse.params


def every(operators) -> list:
    return [(p, o) for p in sorted(operators) for o in operators[p] if not isinstance(o, Teacher)]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("share", [None, 0.0, 0.3, 0.6, 1.0])
def test_groups_hold_every_operator_once_within_the_limit(share, processes):
    supernet = teacher()
    operators, needs = pool(supernet), Needs(supernet, 3, 10)
    (whole,) = groups_of(operators, needs, memory_gib=None)
    least = max(g.bytes for p, o in every(operators) for g in groups_of({p: [o]}, needs, memory_gib=None))
    limit = None if share is None else (least + share * (whole.bytes - least)) / 2**30
    groups = groups_of(operators, needs, memory_gib=limit, processes=processes)
    assert [(p, o) for group in groups for p, o, _ in group.members] == every(operators)
    assert len(groups) >= processes
    assert limit is None or all(group.bytes <= limit * 2**30 for group in groups)
    assert share != 1.0 or len(groups) == processes
    hands = dealt(groups, processes)
    assert len(hands) == processes
    assert sorted(id(group) for hand in hands for group in hand) == sorted(map(id, groups))


def test_what_fits_nowhere_is_refused_with_the_limit_that_would_do():
    supernet = teacher()
    operators, needs = pool(supernet), Needs(supernet, 3, 10)
    with pytest.raises(ValueError, match=r"distill\.memory_gib=1e-06: layer .* set distill\.memory_gib=") as error:
        groups_of(operators, needs, memory_gib=1e-6)
    enough = float(str(error.value).split("set distill.memory_gib=")[1].split()[0])
    assert groups_of(operators, needs, memory_gib=enough)


def test_where_nothing_is_missing_there_is_no_group():
    needs = Needs(teacher(), 3, 10)
    assert groups_of({(0, "mlp"): [Teacher()]}, needs, memory_gib=1.0, processes=2) == []
    assert dealt([], 2) == []
    (group,) = groups_of({(0, "mlp"): [Identity()]}, needs, memory_gib=None)
    assert group.step_flops == 0
