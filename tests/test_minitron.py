"""Minitron's formulas by hooks on a stock model, and its choice by going through all shapes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from test_baselines import batches, blocks_of, plain
from test_families import build
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.baselines.llm_pruner import LLMPruner
from nas_llm.baselines.minitron import Minitron, width_scores
from nas_llm.models.operator_assembly import assemble
from nas_llm.models.supernet import Supernet
from nas_llm.objectives import mean_token_loss
from nas_llm.operator_network import Identity, OperatorNetwork


@torch.no_grad()
def channels(model: nn.Module, name: str, *, written: bool) -> Tensor:
    """sqrt(sum over samples of (mean over tokens of |x|)^2) of what a module reads or writes, in float64."""
    total = torch.zeros((), dtype=torch.float64)

    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        nonlocal total
        for values, mask in zip(output if written else args[0], batch["attention_mask"].bool(), strict=True):
            total = total + values[mask].double().abs().mean(0) ** 2

    handle = model.get_submodule(name).register_forward_hook(hook)
    for batch in batches():
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    handle.remove()
    return total.sqrt()


def test_scores_of_grouped_heads_neurons_and_channels_are_the_formulas():
    supernet = build("llama")
    model, scores = plain(supernet), width_scores(supernet, batches())
    norms = ["model.norm"]
    for layer in range(4):
        prefix = f"model.layers.{layer}."
        norms += [prefix + "input_layernorm", prefix + "post_attention_layernorm"]
        of_heads = channels(model, prefix + "self_attn.o_proj", written=False).reshape(3, 2, 8).norm(dim=-1)
        assert torch.allclose(scores[f"layers.{layer}.heads_per_group"].double(), of_heads, rtol=1e-5)
        neurons = channels(model, prefix + "mlp.down_proj", written=False)
        assert torch.allclose(scores[f"layers.{layer}.ffn"].double(), neurons, rtol=1e-5)
    hidden = sum(channels(model, norm, written=True) for norm in norms)
    assert torch.allclose(scores["hidden"].double(), hidden, rtol=1e-5)
    assert len(scores) == 9


def test_heads_that_are_their_own_groups_are_ranked_among_all():
    supernet = build("gpt_neox")
    model, scores = plain(supernet), width_scores(supernet, batches())
    of_heads = channels(model, "gpt_neox.layers.1.attention.dense", written=False).reshape(6, 8).norm(dim=-1)
    assert torch.allclose(scores["layers.1.kv_groups"].double(), of_heads, rtol=1e-5)
    assert not any(key.endswith("heads_per_group") for key in scores)


SMALL = {"max_width_pruning": 0.5, "max_depth_pruning": 0.5, "multiple_of": 16}


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_the_best_of_the_largest_shapes_within_the_budget_is_taken(name):
    supernet = build(name)
    whole, turns = supernet.num_parameters(supernet.largest()), layer_turns(plain(supernet))
    grouped = name == "llama"
    heads = [(3, 1), (3, 2)] if grouped else [(3, 1), (4, 1), (5, 1), (6, 1)]
    shapes, other = [], build(name)
    for hidden, (groups, each), ffn, depth in product((32, 48), heads, (48, 64, 80), (2, 3, 4)):
        layers = tuple(LayerChoice(i, groups, each, 8, ffn) for i in range(depth))
        params = other.extract(Architecture(hidden, layers)).num_parameters()
        if params <= 0.6 * whole:
            shapes.append((params, (hidden, groups, each, ffn, depth)))
    largest = [shape for _, shape in sorted(shapes, key=lambda one: -one[0])[:3]]
    pruned = Minitron(0.6, candidates=3, **SMALL)(supernet, batches)
    measured = [(one["loss"], Architecture.from_dict(one["architecture"])) for one in pruned.records["candidates"]]
    found = [(a.hidden, *a.layers[0].shape[:2], a.layers[0].ffn, a.num_layers) for _, a in measured]
    assert sorted(found) == sorted(largest)
    for loss, architecture in measured:
        assert architecture.is_uniform
        assert loss == pytest.approx(mean_token_loss(supernet.extract(architecture), batches()), abs=1e-5)
        order = sorted(range(4), key=lambda i: -turns[i])
        assert [c.index for c in architecture.layers] == sorted(order[: architecture.num_layers])
    assert pruned.architecture == min(measured, key=lambda one: one[0])[1]
    assert pruned.model.num_parameters() == supernet.num_parameters(pruned.architecture)
    scores = width_scores(other, batches())
    for key, places in pruned.records["kept"].items():
        if key.endswith(("ffn", "hidden", "kv_groups")) and key in scores:
            assert places == sorted(scores[key].topk(len(places)).indices.tolist())


@torch.no_grad()
def layer_turns(model: nn.Module) -> list[float]:
    """1 - cos(read, written) of each block, the mean over the tokens of all batches."""
    found = []
    for block in blocks_of(model):
        values: list[Tensor] = []

        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor, values: list[Tensor] = values) -> None:
            read = args[0] if args else kwargs["hidden_states"]
            written = output[0] if isinstance(output, tuple) else output
            values.append(1 - nn.functional.cosine_similarity(read.double(), written.double(), dim=-1))

        handle = block.register_forward_hook(hook, with_kwargs=True)
        for batch in batches():
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        handle.remove()
        masks = [batch["attention_mask"].bool() for batch in batches()]
        found.append(float(torch.cat([turned[mask] for turned, mask in zip(values, masks, strict=True)]).mean()))
    return found


def test_sizes_of_a_7b_network_go_in_modelopts_steps():
    with torch.device("meta"):
        sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
        supernet = Supernet(LlamaForCausalLM(LlamaConfig(vocab_size=32000, **sizes)))
    whole = supernet.num_parameters(supernet.largest())
    found = Minitron(0.5).largest_candidates(supernet)
    assert len(found) == 10
    for layers, shape in found:
        (choice,) = shape.layers
        assert shape.hidden % 256 == 0
        assert choice.ffn % 512 == 0 or choice.ffn == 11008
        assert layers >= 26
        assert min(shape.hidden / 4096, choice.heads / 32, choice.ffn / 11008) >= 0.6
        uniform = tuple(LayerChoice(i, *choice.shape) for i in range(layers))
        assert 0.49 * whole < supernet.num_parameters(Architecture(shape.hidden, uniform)) <= 0.5 * whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_params": 1.0}, r"baseline\.max_params=1\.0: allowed is a fraction"),
        ({"max_width_pruning": 1.0}, r"baseline\.max_width_pruning=1\.0: allowed is the largest share"),
        ({"candidates": 0}, r"baseline\.candidates=0: allowed is 1 or more"),
        ({"axes": ["kv_groups"]}, r"baseline\.axes=\[kv_groups\]: allowed are some of hidden, heads, ffn, layers"),
        ({"max_params": 0.2}, r"baseline\.max_params=0\.2: .*baseline\.max_width_pruning= .* or more"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        Minitron(**settings).refuse(build("llama"))


def test_networks_whose_layers_are_not_alike_are_refused():
    cut = Supernet(LLMPruner(0.3, first_layer=1, last_layer=3)(build("llama"), batches).model)
    with pytest.raises(
        ValueError, match=r"baseline=minitron: the model is of layers that differ in shape.*model\.path"
    ):
        Minitron().refuse(cut)
    operators = OperatorNetwork.of({(2, "attention"): Identity()}, 4)
    with pytest.raises(ValueError, match=r"baseline=minitron: the model is a network of operators.*model\.path"):
        Minitron().refuse(Supernet(assemble(build("llama"), operators)))
