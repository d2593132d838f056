"""Networks of operators: assembled == swapped == reloaded in a fresh process, for every family."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_families import FAMILIES, assert_close, batch, build, logits_of

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.models.loading import from_pretrained
from nas_llm.models.operator_assembly import assemble, swapped
from nas_llm.models.operator_modules import build_sublayer
from nas_llm.models.saving import save_pretrained
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import (
    SUBLAYERS,
    BlockOperators,
    Ffn,
    Heads,
    Identity,
    Linear,
    Operator,
    OperatorNetwork,
    Sublayer,
    Teacher,
    operator_of,
)


def candidates(supernet: Supernet, sublayer: Sublayer) -> list[Operator]:
    full = supernet.largest().layers[0]
    if sublayer == "mlp":
        return [] if supernet.sublayers["mlp"] is None else [Identity(), Linear(), Ffn(full.ffn // 2)]
    groups, heads, head_dim, _ = full.shape
    found: list[Operator] = [Heads(groups - 1, heads, head_dim), Heads(groups, 1, head_dim)]
    if "head_dim" in supernet.elastic_axes:
        found += [Heads(groups, heads, head_dim // 2), Heads(groups - 1, 1, head_dim // 2)]
    return found if supernet.mixes_attention else [Identity(), Linear(), *found]


def random_networks(supernet: Supernet, count: int, seed: int = 0) -> list[OperatorNetwork]:
    rng = np.random.default_rng(seed)

    def draw(sublayer: Sublayer) -> Operator:
        pool = [Teacher(), *candidates(supernet, sublayer)]
        return pool[rng.integers(len(pool))]

    layers = supernet.largest().num_layers
    return [OperatorNetwork(tuple(BlockOperators(*map(draw, SUBLAYERS)) for _ in range(layers))) for _ in range(count)]


def trained(supernet: Supernet, network: OperatorNetwork, seed: int = 0) -> dict[tuple[int, Sublayer], torch.nn.Module]:
    """Modules whose weights differ from the slices that they began as."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for (layer, sublayer), operator in network.operators.items():
        if not isinstance(operator, Teacher):
            modules[layer, sublayer] = made = build_sublayer(supernet, layer, sublayer, operator)
            for parameter in made.parameters():
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return modules


def _taken(modules, layer, sublayer, operator):
    return modules[layer, sublayer]


def assembled(supernet: Supernet, network: OperatorNetwork):
    modules = trained(supernet, network)
    return assemble(supernet, network, lambda layer, sublayer, operator: copy.deepcopy(modules[layer, sublayer]))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_assembled_network_is_the_whole_one_with_modules_swapped(name):
    supernet = build(name)
    inputs, before = batch(), logits_of(supernet.model, batch())
    for network in random_networks(supernet, 4):
        modules = trained(supernet, network)
        with swapped(supernet, modules) as model, torch.no_grad():
            expected = model(**inputs, use_cache=False).logits
        small = assemble(supernet, network, partial(_taken, modules))
        assert_close(logits_of(small, inputs), expected)
    assert torch.equal(logits_of(supernet.model, inputs), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_sliced_operators_are_the_sub_network_of_the_same_sizes(name):
    supernet = build(name)
    full = supernet.largest()
    groups, heads, head_dim, ffn = full.layers[0].shape
    narrow = head_dim // 2 if "head_dim" in supernet.elastic_axes else head_dim
    ffn_kept = ffn // 2 if supernet.sublayers["mlp"] else ffn
    block = BlockOperators(Heads(groups - 1, 1, narrow), Ffn(ffn_kept) if supernet.sublayers["mlp"] else Teacher())
    network = OperatorNetwork((block,) * full.num_layers)
    layers = tuple(LayerChoice(i, groups - 1, 1, narrow, ffn_kept) for i in range(full.num_layers))
    expected = logits_of(supernet.extract(Architecture(full.hidden, layers)), batch())
    assert_close(logits_of(assemble(supernet, network), batch()), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_identity_and_linear_are_the_closed_form(name):
    """The output projection's weight and bias at zero, and the module's map: what the whole network then writes."""
    supernet = build(name)
    for sublayer in SUBLAYERS:
        if not any(isinstance(operator, Identity) for operator in candidates(supernet, sublayer)):
            continue
        zeroed = copy.deepcopy(supernet)
        inside = [m for m in zeroed.layer_modules[1] if m in set(_module(zeroed, 1, sublayer).modules())]
        weights = [m for m in inside if isinstance(m, torch.nn.Linear) or type(m).__name__.endswith("Conv1D")]
        for parameter in weights[-1].parameters():
            parameter.data.zero_()
        network = OperatorNetwork.of({(1, sublayer): Identity()}, supernet.largest().num_layers)
        small = assemble(supernet, network)
        assert_close(logits_of(small, batch()), logits_of(zeroed.model, batch()))
        assert_close(
            logits_of(assemble(supernet, OperatorNetwork.of({(1, sublayer): Linear()}, len(network.blocks))), batch()),
            logits_of(zeroed.model, batch()),
        )


def _module(supernet: Supernet, layer: int, sublayer: Sublayer) -> torch.nn.Module:
    return supernet.blocks[layer].get_submodule(supernet.sublayers[sublayer])


@pytest.mark.parametrize("name", FAMILIES)
def test_counts_are_those_of_the_parameters(name):
    supernet = build(name)
    for network in random_networks(supernet, 4, seed=1):
        small = assembled(supernet, network)
        again = Supernet(copy.deepcopy(small))
        assert again.num_parameters(again.largest()) == sum(p.numel() for p in small.parameters())
        assert_close(logits_of(again.model, batch()), logits_of(small, batch()))
        with again.activate(again.largest()) as model:
            assert_close(logits_of(model, batch()), logits_of(small, batch()))


RELOAD = """
import sys, torch
from safetensors.torch import load_file, save_file
import nas_llm
inputs = load_file(sys.argv[1] + "/inputs.safetensors")
for folder in sys.argv[2:]:
    model = nas_llm.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    options = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    tokens = model.generate(**inputs, use_cache=True, **options)
    plain = model.generate(**inputs, use_cache=False, **options)
    save_file({"logits": logits, "tokens": tokens, "plain": plain}, folder + "/out.safetensors")
"""


def test_networks_of_operators_load_in_a_fresh_process_and_generate_with_a_cache(tmp_path):
    save_file(batch(), tmp_path / "inputs.safetensors")
    expected = {}
    for name in FAMILIES:
        supernet = build(name)
        for network in random_networks(supernet, 2, seed=2):
            small = assembled(supernet, network)
            folder = tmp_path / f"{name}-{network.id}"
            save_pretrained(small, folder)
            options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
            expected[folder] = (logits_of(small, batch()), small.generate(**batch(), use_cache=False, **options))
    folders = [str(folder) for folder in expected]
    subprocess.run([sys.executable, "-c", RELOAD, str(tmp_path), *folders], check=True)
    for folder, (logits, tokens) in expected.items():
        found = load_file(folder / "out.safetensors")
        assert_close(found["logits"], logits)
        assert torch.equal(found["tokens"], tokens), folder
        assert torch.equal(found["plain"], tokens), folder


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2", "phi3"])
def test_layers_of_an_assembled_network_can_be_dropped_and_saved(name, tmp_path):
    supernet = build(name)
    (network,) = random_networks(supernet, 1, seed=3)
    again = Supernet(assembled(supernet, network))
    full = again.largest()
    shallow = Architecture(full.hidden, (full.layers[1], full.layers[3]))
    with again.activate(shallow) as model:
        expected = logits_of(model, batch())
    save_pretrained(again.extract(shallow), tmp_path / "out")
    small = from_pretrained(tmp_path / "out")
    assert_close(logits_of(small, batch()), expected)
    assert again.num_parameters(shallow) == sum(p.numel() for p in small.parameters())
    assert Supernet(small).num_parameters(Supernet.largest(Supernet(from_pretrained(tmp_path / "out")))) == sum(
        p.numel() for p in small.parameters()
    )


def test_an_assembled_network_cannot_be_cut_otherwise():
    supernet = build("llama")
    again = Supernet(assemble(supernet, OperatorNetwork.of({(0, "mlp"): Ffn(40)}, 4)))
    full = again.largest()
    with pytest.raises(ValueError, match="depth alone"), again.activate(Architecture(16, full.layers)):
        pass


def test_narrow_modules_are_pickled_and_keep_their_pairs():
    supernet = build("llama")
    pairs = torch.tensor([2, 0, 3, 1])
    orders = {"head_dim/2": pairs, "head_dim": torch.arange(8)}
    made = build_sublayer(supernet, 0, "attention", Heads(3, 2, 4), orders=orders)
    again = pickle.loads(pickle.dumps(made))
    assert again.rotary_pairs.tolist() == [2, 0]
    network = OperatorNetwork.of({(0, "attention"): Heads(3, 2, 4)}, 4)
    small = assemble(supernet, network, lambda *_: made)
    other = assemble(supernet, network, lambda *_: again)
    assert_close(logits_of(other, batch()), logits_of(small, batch()))


def test_the_order_of_rotary_pairs_changes_nothing_where_all_are_kept():
    """Queries and keys in another order of pairs, with the frequencies in the same order: the same attention."""
    supernet = build("llama")
    pairs, channels = torch.randperm(4), torch.randperm(8)
    made = build_sublayer(supernet, 0, "attention", Teacher())
    from nas_llm.models.operator_modules import _cut, _narrow

    permuted = _cut(
        _module(supernet, 0, "attention"),
        supernet,
        supernet.largest().layers[0],
        {"head_dim/2": pairs, "head_dim": channels},
    )
    _narrow(permuted, pairs)
    for module in (made, permuted):
        with swapped(supernet, {(0, "attention"): module}) as model, torch.no_grad():
            assert_close(model(**batch(), use_cache=False).logits, logits_of(supernet.model, batch()), 1e-5)


@pytest.mark.parametrize(
    ("family", "layer", "sublayer", "operator", "message"),
    [
        ("llama", 0, "mlp", Heads(1, 1, 8), "does not belong"),
        ("llama", 0, "attention", Ffn(8), "does not belong"),
        ("llama", 0, "mlp", Ffn(81), "1 to 80"),
        ("llama", 0, "attention", Heads(4, 2, 8), "at most 3x2x8"),
        ("llama", 0, "attention", Heads(3, 2, 5), "rotary pairs"),
        ("gpt_neox", 0, "attention", Heads(6, 1, 4), "cannot slice"),
        ("gemma2", 0, "attention", Identity(), "mixes sliding"),
        ("opt", 0, "mlp", Identity(), "attention_only"),
    ],
)
def test_misfits_are_refused(family, layer, sublayer, operator, message):
    with pytest.raises(ValueError, match=message):
        build_sublayer(build(family), layer, sublayer, operator)


def test_names_are_read_back():
    names = ["teacher", "identity", "linear", "heads-4x2x16", "ffn-96", "sparse-2:4-in", "int4-g32-both"]
    assert [operator_of(name).name for name in names] == names
    with pytest.raises(ValueError, match="heads-"):
        operator_of("heads-4")


def test_a_network_survives_json_and_counts_overlap():
    network = OperatorNetwork.of({(0, "mlp"): Ffn(4), (1, "attention"): Identity()}, 2)
    assert OperatorNetwork.from_dict(network.to_dict()) == network
    assert network.overlap(OperatorNetwork.teacher(2)) == 2
    with pytest.raises(ValueError, match="blocks"):
        OperatorNetwork.from_dict({"blocks": [{"attention": "teacher"}]})


def test_another_number_of_layers_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="blocks"):
        assemble(build("llama"), OperatorNetwork.teacher(3))
