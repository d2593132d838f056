"""Ranks of adapters as axes of both spaces: genomes, sizes by enumeration, samples, refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from test_families import build

from nas_llm.peft.lora import Lora
from nas_llm.search_space import SearchSpace

LORA = Lora(r=6, lora_alpha=12, lora_dropout=0.0)
WHOLE = {"hidden": [48], "kv_groups": [3]}


@pytest.fixture(scope="module")
def supernet():
    made = build("llama")
    LORA(made)
    return made


def spaces(supernet):
    yield SearchSpace.joint(supernet, **WHOLE, ffn_ratio=[1.0, 80 / 48], depth=[3, 4], ranks=[2, 4, 6])
    yield SearchSpace.per_layer(supernet, **WHOLE, ffn=[80], depth=[1, 4], ranks={"ffn_in": [3, 6], "lm_head": [1, 6]})
    yield SearchSpace.per_layer(supernet, elastic=["rank"], ranks=[4, 6])


def test_genomes_and_sizes(supernet):
    rng = np.random.default_rng(0)
    for space in spaces(supernet):
        for architecture in (
            space.largest(),
            space.smallest(),
            space.middle(),
            *(space.sample(rng) for _ in range(20)),
        ):
            assert architecture in space
            assert space.decode(space.encode(architecture)) == architecture
            assert all(near in space for near in space.neighbours(architecture))
            supernet.num_parameters(architecture)
        assert space.largest() == supernet.largest()
        assert SearchSpace.from_dict(space.to_dict()) == space


def test_the_size_is_that_of_an_enumeration(supernet):
    joint = SearchSpace.joint(supernet, **WHOLE, ffn_ratio=[1.0, 80 / 48], depth=[3, 4], ranks=[3, 6])
    layered = SearchSpace.per_layer(
        supernet, **WHOLE, ffn=[80], depth=[1, 2], ranks={"ffn_in": [3, 6], "lm_head": [1, 6]}
    )
    for space in (joint, layered):
        found = {space.decode(genome) for genome in itertools.product(*(range(n) for n in space.gene_sizes))}
        assert len(found) == space.size


def test_a_neighbour_differs_by_one_step_of_one_rank(supernet):
    space = SearchSpace.per_layer(supernet, elastic=["rank"], ranks=[2, 4, 6])
    middle = space.middle()
    assert {rank for layer in middle.layers for _, rank in layer.ranks} == {4}  # the heuristic sub-network (Shears)
    assert len(space.neighbours(middle)) == 2 * (4 * 4 + 1)  # four groups in four layers, and the LM head


def test_defaults_and_mode_a(supernet):
    fixed = SearchSpace.joint(supernet)
    assert all(len(values) == 1 for _, values in fixed.ranks + fixed.shared_ranks)
    nls = SearchSpace.joint(supernet, elastic=["rank"], steps=3, min_fraction=1 / 3)
    assert dict(nls.ranks) == dict.fromkeys(("attention_in", "attention_out", "ffn_in", "ffn_out"), (2, 4, 6))
    assert nls.smallest().without_ranks == supernet.largest().without_ranks


def test_impossible_ranks_are_refused(supernet):
    plain = build("llama")
    with pytest.raises(ValueError, match=r"search_space.ranks=\[2\] cannot take effect.*peft=lora"):
        SearchSpace.joint(plain, ranks=[2])
    with pytest.raises(ValueError, match=r"search_space.elastic=\[rank\].*peft=lora"):
        SearchSpace.joint(plain, elastic=["rank"])
    with pytest.raises(ValueError, match=r"search_space.ranks.ffn_in=\[7\]: the model has 6"):
        SearchSpace.joint(supernet, ranks={"ffn_in": [7]})
    with pytest.raises(ValueError, match=r"no group of adapters 'ffn'.*there are attention_in"):
        SearchSpace.joint(supernet, ranks={"ffn": [2]})
    with pytest.raises(ValueError, match=r"search_space.ranks=\[2\].*elastic=\[ffn,rank\]"):
        SearchSpace.joint(supernet, elastic=["ffn"], ranks=[2])
    space = SearchSpace.joint(supernet, ranks=[2, 6])
    with pytest.raises(ValueError, match="are not those of the space"):
        space.encode(supernet.largest().without_ranks)
    assert supernet.largest().without_ranks not in space
