"""The options of `search_space`: sizes by enumeration on a small model, the families' own at their models' shapes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from search_fixtures import Sizes
from transformers import AutoConfig, AutoModelForCausalLM

from nas_llm.composition import checked
from nas_llm.config import build, config_dir
from nas_llm.config_errors import options
from nas_llm.models.supernet import Supernet
from nas_llm.search_space import SearchSpace

SMALL = Sizes(hidden=32, layers=4, kv_groups=2, ffn=100)
LAYERS = range(4)
# Numbers counted by hand for the small model: 4 layers, 2 groups of one head, widths 8 ... 32, FFN 25 ... 100.
WIDTHS, FFNS, DEPTHS, GROUPS = 4, 11, 4, 2
NAMED = {
    "width_only": WIDTHS,
    "depth_only": DEPTHS,
    "ffn_only": 8,
    "attention_only": GROUPS,
    "layer_dropping": 2**4 - 1,
    "whole": 1,
    "per_layer_large": sum(
        len(list(itertools.combinations(LAYERS, depth))) * (GROUPS * FFNS) ** depth for depth in range(1, 5)
    ),
}
MODELS = {  # of the papers
    "llama_joint": ("llama", {"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}),
    "llama_3_1_8b": ("llama", {"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}),
    "llama_2_7b": ("llama", {"intermediate_size": 11008}),
    "pythia": (
        "gpt_neox",
        {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32, "num_attention_heads": 32},
    ),
    "phi": (
        "phi",
        {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32, "num_attention_heads": 32},
    ),
    "phi3": ("phi3", {"hidden_size": 3072, "intermediate_size": 8192, "pad_token_id": 0}),
}
LARGEST = {  # parameters of the published models
    "llama_joint": 8_030_261_248,
    "llama_3_1_8b": 8_030_261_248,
    "llama_2_7b": 6_738_415_616,
    "phi3": 3_821_079_552,
}
SIZES = {
    "llama_joint": 8 * 3 * 5 * 4 * 32,
    "llama_3_1_8b": 5 * 5 * 3 * 4 * 17,
    "llama_2_7b": 8 * 3 * 5 * 3 * 32,
}


def space_of(option: str, supernet, *overrides: str) -> SearchSpace:
    cfg = checked([f"search_space={option}", *overrides, "stage=train"])
    return build(cfg.search_space, supernet=supernet)


def everything(space: SearchSpace):
    return {space.decode(genome) for genome in itertools.product(*(range(n) for n in space.gene_sizes))}


def test_every_option_is_tested_here():
    assert set(options(config_dir(), "search_space")) == {"joint", "per_layer", *NAMED, *MODELS}


@pytest.mark.parametrize("option", options(config_dir(), "search_space"))
def test_every_option_says_in_its_first_line_what_varies(option):
    first = (config_dir() / "search_space" / f"{option}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 30


@pytest.mark.parametrize("option", NAMED)
def test_a_named_space_has_the_size_that_it_says(option):
    space = space_of(option, SMALL)
    assert space.size == NAMED[option]
    assert space.largest() == SMALL.largest()


@pytest.mark.parametrize("option", [option for option in NAMED if option != "per_layer_large"])
def test_a_named_space_is_what_its_genomes_decode_to(option):
    space = space_of(option, SMALL)
    inside = everything(space)
    assert len(inside) == space.size
    assert {space.largest(), space.middle(), space.smallest()} <= inside
    for architecture in inside:
        assert architecture in space
        assert space.decode(space.encode(architecture)) == architecture


def test_per_layer_large_by_drawing():
    space = space_of("per_layer_large", SMALL)
    rng = np.random.default_rng(0)
    drawn = [space.sample(rng) for _ in range(300)]
    assert {layer.ffn for a in drawn for layer in a.layers} == {24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 100}
    assert {tuple(layer.index for layer in a.layers) for a in drawn} >= {(0,), (1, 2), (0, 3), (0, 1, 2, 3)}
    assert {a.hidden for a in drawn} == {32}
    assert all(space.decode(space.encode(a)) == a for a in drawn)
    assert all(a in space for a in (space.largest(), space.middle(), space.smallest(), *drawn))


@pytest.mark.parametrize(
    ("option", "axis"), [("width_only", "hidden"), ("depth_only", "num_layers"), ("ffn_only", "ffn")]
)
def test_only_the_named_axis_varies(option, axis):
    whole = SMALL.largest()

    def values(architecture):
        first = architecture.layers[0]
        sizes = {"hidden": architecture.hidden, "num_layers": architecture.num_layers, "ffn": first.ffn}
        return sizes | {"heads": (first.kv_groups, first.heads_per_group, first.head_dim)}

    for architecture in everything(space_of(option, SMALL)):
        assert architecture.is_uniform
        assert {key for key, value in values(architecture).items() if value != values(whole)[key]} <= {axis}


def test_width_only_keeps_a_whole_ffn_that_no_multiple_divides():
    odd = Sizes(hidden=32, ffn=173)
    space = SearchSpace.joint(odd, elastic=["hidden"], multiple_of=8)
    assert {(a.hidden, a.layers[0].ffn) for a in everything(space)} == {(n, 173) for n in (8, 16, 24, 32)}


def test_a_narrow_space_lies_in_the_joint_one():
    """So that one super-network can be searched in each of them and the fronts compared."""
    joint = space_of("joint", SMALL)
    for option in ("ffn_only", "attention_only", "depth_only"):
        assert everything(space_of(option, SMALL)) <= everything(joint)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"elastic": ["width"]}, r"elastic=\[width\]: there is no axis width; allowed are hidden, kv_groups"),
        ({"elastic": ["hidden", "head_dim"]}, r"cannot slice head_dim; allowed are hidden, kv_groups, heads_per_group"),
        ({"elastic": []}, "at least one"),
        ({"elastic": ["ffn", "ffn"]}, "once"),
        ({"elastic": ["ffn"], "depth": [4]}, r"depth=\[4\] cannot take effect.*elastic=\[ffn,depth\]"),
        ({"elastic": ["depth"], "ffn_ratio": [1.0]}, r"ffn_ratio=\[1.0\] cannot take effect.*ffn_ratio=null"),
    ],
)
def test_axes_that_cannot_vary_are_refused(settings, message):
    rigid = Sizes(elastic_axes=frozenset({"hidden", "kv_groups", "heads_per_group", "ffn", "layers"}))
    with pytest.raises(ValueError, match=message):
        SearchSpace.joint(rigid, **settings)


def test_the_refusal_of_an_override_names_the_one_that_mends_it():
    with pytest.raises(ValueError, match=r"search_space\.elastic=\[hidden,depth\]"):
        space_of("width_only", SMALL, "search_space.depth=[2,4]")
    space = space_of("width_only", SMALL, "search_space.depth=[2,4]", "search_space.elastic=[hidden,depth]")
    assert space.size == 2 * WIDTHS


@pytest.fixture(scope="module")
def model_of():
    """Super-networks at the papers' models' shapes, without memory."""
    made = {}

    def make(option):
        kind, changes = MODELS[option]
        if repr(MODELS[option]) not in made:
            config = AutoConfig.for_model(kind, **changes)
            with torch.device("meta"):
                made[repr(MODELS[option])] = Supernet(AutoModelForCausalLM.from_config(config))
        return made[repr(MODELS[option])]

    return make


@pytest.mark.parametrize("option", MODELS)
def test_the_papers_models_have_their_spaces(option, model_of):
    supernet = model_of(option)
    space = space_of(option, supernet)
    assert space.largest() == supernet.largest()
    if option in LARGEST:
        assert supernet.num_parameters(space.largest()) == LARGEST[option]
    assert supernet.num_parameters(space.smallest()) < 0.45 * supernet.num_parameters(space.largest())
    if option in SIZES:
        assert space.size == SIZES[option]
    rng = np.random.default_rng(0)
    for architecture in [space.smallest(), space.middle(), *(space.sample(rng) for _ in range(20))]:
        assert space.decode(space.encode(architecture)) == architecture
        with supernet.activate(architecture):  # refuses what does not fit
            pass


def test_the_authors_space_has_their_choices(model_of):
    space = space_of("llama_joint", model_of("llama_joint"))
    drawn = {(a.hidden, a.layers[0].ffn) for a in (space.sample(np.random.default_rng(i)) for i in range(400))}
    assert {hidden for hidden, _ in drawn} == {2**power for power in range(5, 13)}
    assert {round(ffn / hidden, 2) for hidden, ffn in drawn} == {1, 2, 3, 3.5}
    assert {layer.heads for i in range(50) for layer in space.sample(np.random.default_rng(i)).layers} == {8, 16, 32}
