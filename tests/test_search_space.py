"""Search spaces against enumeration; round trips; refusals."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.search_space import SearchSpace


class Described:
    """What a space needs to know of a super-network."""

    layer_order = (2, 0, 1)
    elastic_axes = frozenset({"hidden", "kv_groups", "heads_per_group", "ffn", "layers"})

    def largest(self) -> Architecture:
        return Architecture(64, tuple(LayerChoice(i, 4, 2, 8, 172) for i in range(3)))


SPACES = {
    "joint": SearchSpace.joint(Described()),
    "joint-heads": SearchSpace.joint(Described(), heads_per_group=[1, 2], depth=[2, 3]),
    "per_layer": SearchSpace.per_layer(Described(), hidden=[32, 64], kv_groups=[2, 4], ffn=[80, 172], depth=[1, 3]),
}


@pytest.fixture(params=SPACES, name="space")
def _space(request) -> SearchSpace:
    return SPACES[request.param]


def everything(space: SearchSpace) -> set[Architecture]:
    return {space.decode(genome) for genome in itertools.product(*(range(n) for n in space.gene_sizes))}


def test_size_is_the_number_of_distinct_architectures(space):
    assert len(space) == space.size == len(everything(space))


def test_encode_and_decode_are_inverse(space):
    for architecture in everything(space):
        assert space.decode(space.encode(architecture)) == architecture
        assert architecture in space


def test_samples_reach_every_choice_and_stay_inside(space):
    rng = np.random.default_rng(0)
    samples = [space.sample(rng) for _ in range(3000)]
    assert set(samples) <= everything(space)
    assert {a.hidden for a in samples} == set(space.hidden)
    assert {a.num_layers for a in samples} == set(space.depth)
    assert {layer.kv_groups for a in samples for layer in a.layers} == set(space.kv_groups)
    assert [space.sample(np.random.default_rng(7)) for _ in range(3)] == [space.sample(np.random.default_rng(7))] * 3


def test_extremes_and_neighbours(space):
    inside = everything(space)
    assert space.largest() == Described().largest()
    assert space.smallest().num_layers == min(space.depth)
    assert space.smallest().hidden == min(space.hidden)
    assert space.middle() in inside
    neighbours = space.neighbours(space.middle())
    assert neighbours
    assert len(set(neighbours)) == len(neighbours)
    assert set(neighbours) <= inside - {space.middle()}


def test_the_most_important_layers_are_kept():
    space = SPACES["joint"]
    kept = {a.num_layers: {layer.index for layer in a.layers} for a in everything(space)}
    assert kept == {1: {2}, 2: {0, 2}, 3: {0, 1, 2}}


def test_ffn_width_follows_the_residual_width_of_the_sub_network():
    space = SearchSpace.joint(Described(), hidden=[32, 64], ffn_ratio=[1.0, 2.0], multiple_of=8)
    widths = {(a.hidden, a.layers[0].ffn) for a in everything(space)}
    assert widths == {(32, 32), (32, 64), (64, 64), (64, 128)}


def test_defaults_are_multiples_and_within_bounds():
    space = SearchSpace.joint(Described(), min_fraction=0.5, steps=4, multiple_of=16)
    assert space.hidden == (32, 48, 64)
    assert space.kv_groups == (2, 3, 4)
    assert space.depth == (2, 3)
    assert space.heads_per_group == (2,)
    assert space.head_dim == (8,)
    assert all(
        a.layers[0].ffn % 16 == 0 or a == Described().largest() or a.layers[0].ffn == 172 for a in everything(space)
    )


def test_dictionaries_round_trip(space):
    import json

    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    for architecture in list(everything(space))[:20]:
        again = Architecture.from_dict(json.loads(json.dumps(architecture.to_dict())))
        assert again == architecture
        assert again.id == architecture.id


def test_ids_are_stable():
    assert Architecture(8, (LayerChoice(0, 1, 1, 4, 16),)).id == "c08d751767c5"


def test_huge_spaces_are_counted_exactly():
    class Deep(Described):
        layer_order = tuple(range(80))

        def largest(self) -> Architecture:
            return Architecture(64, tuple(LayerChoice(i, 4, 2, 8, 172) for i in range(80)))

    space = SearchSpace.per_layer(Deep(), hidden=[64], kv_groups=[4], ffn=[80, 172], depth=[79, 80])
    assert space.size == 80 * 2**79 + 2**80
    with pytest.raises(OverflowError, match=r"space\.size"):
        len(space)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"hidden": [128]}, r"search_space.hidden=\[128\]: the model has 64"),
        ({"hidden": []}, "search_space.hidden=.*empty"),
        ({"kv_groups": [0, 4]}, "search_space.kv_groups"),
        ({"depth": [4]}, "search_space.depth=.*the model has 3"),
        ({"ffn_ratio": [0.0]}, "search_space.ffn_ratio"),
        ({"ffn_ratio": [3.0]}, "search_space.ffn_ratio=.*2.6875"),
        ({"head_dim": [4]}, "cannot slice head_dim"),
        ({"min_fraction": 0}, "search_space.min_fraction=0"),
        ({"steps": 0}, "search_space.steps=0"),
        ({"multiple_of": 0}, "search_space.multiple_of=0"),
    ],
)
def test_impossible_choices_are_refused_by_name(choices, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace.joint(Described(), **choices)


def test_foreign_points_are_refused(space):
    outside = Architecture(64, (LayerChoice(0, 3, 2, 8, 172),))
    assert outside not in space
    with pytest.raises(ValueError):
        space.encode(outside)
    with pytest.raises(ValueError, match="genome"):
        space.decode([99] * len(space.gene_sizes))
    with pytest.raises(ValueError, match="order of the super-network"):
        Architecture(8, (LayerChoice(1, 1, 1, 4, 16), LayerChoice(0, 1, 1, 4, 16)))


def test_a_summary_counts_one_layer_as_one() -> None:
    layer = LayerChoice(0, 2, 2, 8, 48)
    assert "hidden 32, 1 layer, heads" in Architecture(32, (layer,)).summary()
    assert "hidden 32, 2 layers, heads" in Architecture(32, (layer, replace(layer, index=1))).summary()
