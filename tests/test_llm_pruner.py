"""LLM-Pruner against its formulas by hand: autograd of each weight, sums over the rows and columns of each group."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import pytest
import torch
from test_baselines import batches, logits, plain
from test_families import build
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from nas_llm.architecture import Architecture
from nas_llm.baselines.llm_pruner import LLMPruner, group_scores
from nas_llm.models.operator_assembly import assemble
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import Identity, OperatorNetwork

MANY = {
    "sum": lambda scores: reduce(torch.add, scores),
    "prod": lambda scores: reduce(torch.mul, scores) ** (1 / len(scores)),
    "max": lambda scores: reduce(torch.maximum, scores),
    "first": lambda scores: scores[0],
}


def importance(model: nn.Module) -> dict[str, Tensor]:
    """|w dL/dw| in float64 by name, L the mean over all tokens of both batches, in one backward pass."""
    model.zero_grad()
    losses, tokens = [], 0
    for batch in batches():
        given = {key: batch[key] for key in ("input_ids", "attention_mask")}
        found, labels = model(**given, use_cache=False).logits[:, :-1], batch["labels"][:, 1:]
        losses.append(nn.functional.cross_entropy(found.flatten(0, 1), labels.flatten(), reduction="sum"))
        tokens += int((labels != -100).sum())
    (sum(losses) / tokens).backward()
    return {name: (w * w.grad).abs().detach().double() for name, w in model.named_parameters()}


def heads_of_llama(found: dict[str, Tensor], layer: int, group: int) -> list[Tensor]:
    """q, k, v, o of a KV group: two query heads of 8 channels, one key and value head."""
    prefix = f"model.layers.{layer}.self_attn."
    queries, own = slice(16 * group, 16 * group + 16), slice(8 * group, 8 * group + 8)
    q, k, v, o = (found[f"{prefix}{name}_proj.weight"] for name in "qkvo")
    return [q[queries].sum(), k[own].sum(), v[own].sum(), o[:, queries].sum()]


def heads_of_neox(found: dict[str, Tensor], layer: int, group: int) -> list[Tensor]:
    """A head: the 24 rows of its queries, keys and values, one behind the other, and its 8 channels of the output."""
    prefix = f"gpt_neox.layers.{layer}.attention."
    rows, own = slice(24 * group, 24 * group + 24), slice(8 * group, 8 * group + 8)
    return [found[prefix + "query_key_value.weight"][rows].sum(), found[prefix + "dense.weight"][:, own].sum()]


def neurons_of_llama(found: dict[str, Tensor], layer: int) -> list[Tensor]:
    gate, up, down = (found[f"model.layers.{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    return [gate.sum(1), up.sum(1), down.sum(0)]


def neurons_of_neox(found: dict[str, Tensor], layer: int) -> list[Tensor]:
    up, down = (found[f"gpt_neox.layers.{layer}.mlp.dense_{name}.weight"] for name in ("h_to_4h", "4h_to_h"))
    return [up.sum(1), down.sum(0)]


FAMILIES: dict[str, tuple[Callable, Callable, int]] = {
    "llama": (heads_of_llama, neurons_of_llama, 3),
    "gpt_neox": (heads_of_neox, neurons_of_neox, 6),
}


@pytest.mark.parametrize("aggregation", MANY)
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_sums_of_weight_times_gradient_by_hand(name, aggregation):
    supernet = build(name)
    heads, neurons, groups = FAMILIES[name]
    found = importance(plain(supernet))
    keys = ["layers.1.kv_groups", "layers.2.ffn"]
    scores = group_scores(supernet, batches(), keys, aggregation)
    many = MANY[aggregation]
    expected = torch.stack([many(heads(found, 1, group)) for group in range(groups)])
    assert torch.allclose(scores["layers.1.kv_groups"].double(), expected, rtol=2e-4)
    assert torch.allclose(scores["layers.2.ffn"].double(), many(neurons(found, 2)), rtol=2e-4, atol=1e-12)
    assert all(parameter.grad is None for parameter in supernet.parameters())


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_a_hidden_channel_is_that_of_every_weight_tied_ones_once(name):
    supernet = build(name)
    found = importance(plain(supernet))
    expected = torch.zeros(48, dtype=torch.float64)
    for key, value in found.items():
        if key.endswith("bias"):
            continue
        writes = key.endswith(("o_proj.weight", "down_proj.weight"))
        expected += value if value.ndim == 1 else value.sum(1 if writes else 0)
    scores = group_scores(supernet, batches(), ["hidden"], "sum")
    assert torch.allclose(scores["hidden"].double(), expected, rtol=2e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_groups_of_the_highest_scores_stay_and_the_rest_is_as_if_it_were_zero(name):
    supernet = build(name)
    model, (heads, neurons, groups) = plain(supernet), FAMILIES[name]
    found = importance(model)
    pruned = LLMPruner(0.3, first_layer=1, last_layer=3)(supernet, batches)
    kept_groups = {3: 2, 6: 4}[groups]
    assert pruned.records["layers"] == [1, 3]
    assert pruned.records["kept"].keys() == {f"layers.{i}.{axis}" for i in (1, 2) for axis in ("kv_groups", "ffn")}
    for layer in (1, 2):
        of_groups = torch.stack([sum(heads(found, layer, group)) for group in range(groups)])
        for axis, scores, count in (("kv_groups", of_groups, kept_groups), ("ffn", sum(neurons(found, layer)), 56)):
            kept = sorted(scores.topk(count).indices.tolist())
            assert pruned.records["kept"][f"layers.{layer}.{axis}"] == kept
            ends = ("o_proj", "attention.dense") if axis == "kv_groups" else ("down_proj", "dense_4h_to_h")
            for key, module in model.named_modules():
                if f"layers.{layer}." in key and key.endswith(ends):
                    gone = torch.ones(len(scores), dtype=torch.bool)
                    gone[kept] = False
                    module.weight.data[:, gone.repeat_interleave(module.weight.shape[1] // len(scores))] = 0
    assert torch.allclose(logits(pruned.model), logits(model), atol=1e-5)
    assert pruned.architecture == Architecture.from_dict(pruned.records["architecture"])
    assert pruned.model.num_parameters() == supernet.num_parameters(pruned.architecture)


def test_a_quarter_of_layers_4_to_29_is_a_fifth_of_llama_7b():
    with torch.device("meta"):
        sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
        supernet = Supernet(LlamaForCausalLM(LlamaConfig(vocab_size=32000, **sizes)))
    found, full = LLMPruner().architecture(supernet), supernet.largest()
    cut = [layer.index for layer in found.layers if layer.shape != full.layers[layer.index].shape]
    assert cut == list(range(4, 30))
    assert {found.layers[i].shape for i in cut} == {(24, 1, 128, 8256)}
    assert supernet.num_parameters(found) / supernet.num_parameters(full) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("axes", [("kv_groups", "ffn"), ("ffn",), ("hidden", "kv_groups", "ffn")])
@pytest.mark.parametrize("share", [0.8, 0.6])
def test_a_budget_is_met_by_the_least_ratio(share, axes):
    supernet = build("llama")
    whole = supernet.num_parameters(supernet.largest())
    method = LLMPruner(max_params=share, axes=axes, first_layer=0, last_layer=4)
    found = method.architecture(supernet)
    assert supernet.num_parameters(found) <= share * whole
    counts = {"hidden": 48, "kv_groups": 3, "ffn": 80}
    ratios = {gone / counts[axis] for axis in axes for gone in range(1, counts[axis])}
    shapes = {LLMPruner(r, axes=axes, first_layer=0, last_layer=4).architecture(supernet) for r in ratios}
    larger = [one for one in shapes if supernet.num_parameters(found) < supernet.num_parameters(one)]
    assert all(supernet.num_parameters(one) > share * whole for one in larger)
    method.refuse(supernet)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 0.2, "max_params": 0.5}, r"baseline\.ratio=0\.2 and baseline\.max_params=0\.5.*one of them"),
        ({"ratio": 1.0}, r"baseline\.ratio=1\.0: allowed is the share"),
        ({"aggregation": "mean"}, r"baseline\.aggregation=mean: allowed are sum, prod, max, first"),
        ({"axes": ["heads"]}, r"baseline\.axes=\[heads\]: allowed are some of kv_groups, ffn, hidden"),
        ({"first_layer": -1}, r"baseline\.first_layer=-1: allowed is 0 or more"),
        ({"first_layer": 3, "last_layer": 3}, r"the network has 4 layers; .*baseline\.first_layer=0"),
        ({"last_layer": 5}, r"baseline\.last_layer=5: the network has 4 layers"),
        ({"max_params": 0.2}, r"baseline\.max_params=0\.2: with one unit of .* or more"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        LLMPruner(**settings).refuse(build("llama"))


def test_a_single_group_cannot_be_cut_and_operators_are_whole():
    with pytest.raises(ValueError, match=r"baseline\.ratio=0\.25 leaves every unit of kv_groups where it is"):
        LLMPruner(axes=["kv_groups"]).refuse(build("llama", num_key_value_heads=1))
    supernet = build("llama")
    assembled = Supernet(assemble(supernet, OperatorNetwork.of({(2, "attention"): Identity()}, 4)))
    with pytest.raises(ValueError, match=r"baseline=llm_pruner: the model is a network of operators.*model\.path"):
        LLMPruner().refuse(assembled)


def test_no_labelled_token_is_refused():
    empty = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in batches()]
    with pytest.raises(ValueError, match="calibration"):
        LLMPruner()(build("llama"), lambda: empty)
