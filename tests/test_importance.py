"""Importance scores against brute force; sorting by them makes sub-networks better."""

from __future__ import annotations

import pytest
import torch
from test_families import FAMILIES, batch, build

from nas_llm.importance.activation import Activation
from nas_llm.importance.magnitude import Magnitude
from nas_llm.importance.scores import read_scores, write_scores
from nas_llm.models.order import axis_shapes


@pytest.mark.parametrize("method", [Magnitude(), Activation()], ids=["magnitude", "activation"])
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_have_the_shapes_that_sorting_needs(name, method):
    supernet = build(name)
    scores = method(supernet, [batch()])
    shapes = axis_shapes(supernet.largest())
    expected = {key for key in shapes if key != "layers"}
    if supernet.largest().layers[0].heads_per_group == 1 and isinstance(method, Magnitude):
        expected = {key for key in expected if not key.endswith("heads_per_group")} | {
            key for key in scores if key.endswith("heads_per_group")
        }
    assert scores.keys() == expected
    assert all(tuple(value.shape) == shapes[key] and torch.isfinite(value).all() for key, value in scores.items())
    supernet.sort(scores)


def test_magnitude_is_the_norm_of_the_units_weights():
    supernet = build("llama", head_dim=20)
    layer = supernet.model.model.layers[1]
    scores = Magnitude()(supernet)
    mlp = layer.mlp
    neuron = torch.cat([mlp.gate_proj.weight[5], mlp.up_proj.weight[5], mlp.down_proj.weight[:, 5]])
    assert torch.allclose(scores["layers.1.ffn"][5], neuron.norm())
    attention = layer.self_attn
    rows = slice(2 * 40, 3 * 40)  # group 2: two heads of size 20
    group = torch.cat(
        [
            attention.q_proj.weight[rows].flatten(),
            attention.o_proj.weight[:, rows].flatten(),
            attention.k_proj.weight[2 * 20 : 3 * 20].flatten(),
            attention.v_proj.weight[2 * 20 : 3 * 20].flatten(),
        ]
    )
    assert torch.allclose(scores["layers.1.kv_groups"][2], group.norm())
    head = torch.cat([attention.q_proj.weight[100:120].flatten(), attention.o_proj.weight[:, 100:120].flatten()])
    assert torch.allclose(scores["layers.1.heads_per_group"][2, 1], head.norm())
    channel = [p.select(d, 7).flatten() for p in supernet.parameters() for d in range(p.ndim) if p.shape[d] == 48]
    assert torch.allclose(scores["hidden"][7], torch.cat(channel).norm())


def test_activation_is_what_the_projections_read():
    supernet = build("llama")
    layer = supernet.model.model.layers[2]
    seen = {}
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda m, a: seen.update(ffn=a[0])),
        layer.self_attn.o_proj.register_forward_pre_hook(lambda m, a: seen.update(heads=a[0])),
    ]
    inputs = batch()
    with torch.no_grad():
        supernet.model(**inputs)
    for handle in handles:
        handle.remove()
    mask = inputs["attention_mask"].bool()
    ffn = torch.stack([seen["ffn"][i][mask[i]].abs().mean(0) for i in range(3)])
    heads = seen["heads"].view(3, 12, 3, 2, 8).norm(dim=-1)
    heads = torch.stack([heads[i][mask[i]].mean(0) for i in range(3)])
    scores = Activation()(supernet, [{k: v[:2] for k, v in inputs.items()}, {k: v[2:] for k, v in inputs.items()}])
    assert torch.allclose(scores["layers.2.ffn"], ffn.norm(dim=0), rtol=1e-4)
    assert torch.allclose(scores["layers.2.heads_per_group"], heads.norm(dim=0), rtol=1e-4)
    assert torch.allclose(scores["layers.2.kv_groups"], heads.norm(dim=0).sum(1), rtol=1e-4)


@pytest.mark.parametrize("tokens", ["mean", "abs_mean", "l2", "variance"])
def test_reductions(tokens):
    supernet = build("llama")
    outputs = []
    handle = supernet.model.model.norm.register_forward_hook(lambda m, a, o: outputs.append(o))
    ids = batch()["input_ids"]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        supernet.model(**inputs)
    handle.remove()
    over = {
        "mean": lambda x: x.mean(1),
        "abs_mean": lambda x: x.abs().mean(1),
        "l2": lambda x: x.norm(dim=1),
        "variance": lambda x: x.var(1, unbiased=False),
    }[tokens]
    for layer in supernet.layer_modules:  # leave the last norm alone in the sum
        for module in layer:
            if len(module.elastic_layouts["weight"]) == 1:
                module._parameters["weight"].data.zero_()
    with torch.no_grad():
        handle = supernet.model.model.norm.register_forward_hook(lambda m, a, o: outputs.append(o))
        supernet.model(**inputs)
        handle.remove()
    scores = Activation(tokens=tokens, samples="l2")(supernet, [inputs])
    assert torch.allclose(scores["hidden"], over(outputs[-1]).norm(dim=0), rtol=1e-3, atol=1e-5)


def test_bad_input_and_round_trip(tmp_path):
    supernet = build("llama")
    with pytest.raises(ValueError, match="calibration"):
        Activation()(supernet, [])
    with pytest.raises(ValueError, match="importance.tokens"):
        Activation(tokens="median")
    with pytest.raises(ValueError, match="holds no"):
        read_scores(tmp_path)
    scores = Magnitude()(supernet)
    write_scores(scores, tmp_path, method="magnitude")
    assert all(torch.equal(value, scores[key]) for key, value in read_scores(tmp_path).items())
