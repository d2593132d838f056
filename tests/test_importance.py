"""Importance scores against brute force, by hand for every way in which families store their weights; what is left as
it was; saved scores and who may use them."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_families import FAMILIES, assert_close, batch, build, logits_of
from torch.nn import functional as F

from nas_llm.architecture import Architecture
from nas_llm.importance.activation import Activation
from nas_llm.importance.block import Block
from nas_llm.importance.combined import Combined
from nas_llm.importance.file import File
from nas_llm.importance.magnitude import Magnitude
from nas_llm.importance.naming import in_words
from nas_llm.importance.random import Random
from nas_llm.importance.scores import identity, recorded_method, write_scores
from nas_llm.importance.taylor import Taylor
from nas_llm.importance.wanda import Wanda
from nas_llm.lightning.preparation import sort_by_importance
from nas_llm.models.order import axis_shapes
from nas_llm.run_directory import IMPORTANCE_FILE

WIDTH = {
    method.__class__.__name__.lower(): method for method in (Magnitude(), Activation(), Taylor(), Wanda(), Random())
}
DEPTH = {f"block-{name}": Block(name) for name in ("cosine", "loss", "perplexity", "first_n", "last_n")}
METHODS = {**WIDTH, **DEPTH, "combined": Combined(Activation(), Block())}
USES_DATA = ["activation", "taylor", "wanda", "block-cosine", "block-loss", "combined"]
# Of one layer: queries and what follows them, output of attention, up projections, down projection, inside the block.
LAYERS = {
    "llama-tied": "model.layers",
    "gpt_neox": "gpt_neox.layers",
    "phi3": "model.layers",
    "gpt2": "transformer.h",
}


def labelled(pads: int = 0) -> dict[str, torch.Tensor]:
    """The batch of the families' tests, padded to the right as training data are, with labels and ``pads`` more
    columns of padding."""
    inputs = batch()
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    inputs["labels"][2, :5] = -100  # a prompt
    fill = {"input_ids": 7, "attention_mask": 0, "labels": -100}
    return {key: F.pad(value, (0, pads), value=fill[key]) for key, value in inputs.items()}


def halves() -> list[dict[str, torch.Tensor]]:
    inputs = labelled()
    return [{key: value[:2] for key, value in inputs.items()}, {key: value[2:] for key, value in inputs.items()}]


def odd(name: str):
    """No two axes of the same size, where the family lets heads have their own."""
    return build(name, head_dim=20) if name == "llama-tied" else build(name, attn_implementation="eager")


def own_heads(name: str) -> tuple[int, int, int]:
    """Groups, heads per group and head size of the tiny configurations."""
    return {"llama-tied": (3, 2, 20), "phi3": (3, 2, 8)}.get(name, (6, 1, 8))


def parts_of_group(name: str, block, g: int) -> list[torch.Tensor]:
    """Views of every weight of KV group ``g``, by hand."""
    groups, heads, size = own_heads(name)
    many = slice(g * heads * size, (g + 1) * heads * size)
    one = slice(g * size, (g + 1) * size)
    if name == "llama-tied":
        a = block.self_attn
        q, k, v = a.q_proj, a.k_proj, a.v_proj
        return [
            q.weight[many],
            q.bias[many],
            *(p[one] for m in (k, v) for p in (m.weight, m.bias)),
            a.o_proj.weight[:, many],
        ]
    if name == "phi3":
        start = groups * heads * size
        w = block.self_attn.qkv_proj.weight
        keys, values = w[start : start + groups * size], w[start + groups * size :]
        return [w[many], keys[one], values[one], block.self_attn.o_proj.weight[:, many]]
    if name == "gpt_neox":
        a = block.attention
        rows = slice(3 * g * size, 3 * (g + 1) * size)
        return [a.query_key_value.weight[rows], a.query_key_value.bias[rows], a.dense.weight[:, one]]
    a, hidden = block.attn, groups * size
    starts = [slice(part * hidden + g * size, part * hidden + (g + 1) * size) for part in range(3)]
    fused = [p for s in starts for p in (a.c_attn.weight[:, s], a.c_attn.bias[s])]
    return [*fused, a.c_proj.weight[one]]


def parts_of_neuron(name: str, block, n: int) -> list[torch.Tensor]:
    if name == "llama-tied":
        m = block.mlp
        gates = [p[n : n + 1] for up in (m.gate_proj, m.up_proj) for p in (up.weight, up.bias)]
        return [*gates, m.down_proj.weight[:, n]]
    if name == "phi3":
        w = block.mlp.gate_up_proj.weight
        return [w[n], w[w.shape[0] // 2 + n], block.mlp.down_proj.weight[:, n]]
    if name == "gpt_neox":
        up = block.mlp.dense_h_to_4h
        return [up.weight[n], up.bias[n : n + 1], block.mlp.dense_4h_to_h.weight[:, n]]
    return [block.mlp.c_fc.weight[:, n], block.mlp.c_fc.bias[n : n + 1], block.mlp.c_proj.weight[n]]


def readers_of(name: str, block) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Output projection of attention, down projection."""
    return {
        "llama-tied": lambda: (block.self_attn.o_proj, block.mlp.down_proj),
        "phi3": lambda: (block.self_attn.o_proj, block.mlp.down_proj),
        "gpt_neox": lambda: (block.attention.dense, block.mlp.dense_4h_to_h),
        "gpt2": lambda: (block.attn.c_proj, block.mlp.c_proj),
    }[name]()


def mean_loss(model, inputs) -> float:
    """In float64, written down once more."""
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.double()
    chosen = logits[:, :-1].log_softmax(-1)
    labels = inputs["labels"][:, 1:]
    kept = labels != -100
    return -(chosen.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2) * kept).sum().item() / kept.sum().item()


def scaled_loss(model, parts, inputs, factor: float) -> float:
    with torch.no_grad():
        for part in parts:
            part.mul_(factor)
        loss = mean_loss(model, inputs)
        for part in parts:
            part.div_(factor)
    return loss


def slope(model, parts, inputs, step: float = 3e-3) -> float:
    """|d loss / d (a factor of all these weights)|, which is |sum of weight x gradient|."""
    up, down = (scaled_loss(model, parts, inputs, 1 + sign * step) for sign in (1, -1))
    return abs(up - down) / (2 * step)


# ---------------------------------------------------------------- every method, every family


@pytest.mark.parametrize("method", WIDTH)
@pytest.mark.parametrize("name", FAMILIES)
def test_width_scores_have_the_shapes_that_sorting_needs(name, method):
    supernet = build(name)
    scores = WIDTH[method](supernet, [labelled()])
    shapes = axis_shapes(supernet.largest())
    expected = {key for key in shapes if key != "layers"}
    if supernet.largest().layers[0].heads_per_group == 1:  # single heads have no order; some methods leave them out
        scores = {key: value for key, value in scores.items() if not key.endswith("heads_per_group")}
        expected = {key for key in expected if not key.endswith("heads_per_group")}
    assert scores.keys() == expected
    for key, value in scores.items():
        assert tuple(value.shape) == shapes[key]
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        assert value.unique().numel() > value.numel() / 2  # ReLU neurons may be silent; others differ


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_sorting_by_every_method_keeps_the_function_of_every_family(name, method):
    supernet = build(name)
    before = logits_of(supernet.model, batch())
    scores = METHODS[method](supernet, halves())
    supernet.sort(scores)
    assert_close(logits_of(supernet.model, batch()), before, 1e-4)
    if "layers" in scores:
        assert supernet.layer_order == tuple(scores["layers"].argsort(descending=True).tolist())
    if "hidden" in scores and method != "random":
        again = METHODS[method](supernet, halves())  # the scores have moved with their units
        assert again["hidden"].sort(descending=True).values.allclose(again["hidden"], rtol=1e-2)


@pytest.mark.parametrize("method", USES_DATA)
def test_padding_and_the_cut_into_batches_do_not_count(method):
    whole, padded, cut = (METHODS[method](build("llama"), b) for b in ([labelled()], [labelled(5)], halves()))
    for key, value in whole.items():
        assert torch.allclose(padded[key], value, rtol=1e-3, atol=1e-6), key
        assert torch.allclose(cut[key], value, rtol=1e-3, atol=1e-6), key


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_left_as_it_was(method):
    supernet = build("llama")
    model = supernet.model
    model.train()
    model.model.layers[1].mlp.eval()
    model.lm_head.weight.requires_grad_(False)
    model.model.norm.weight.grad = torch.ones(48)
    modes = [module.training for module in model.modules()]
    required = [parameter.requires_grad for parameter in model.parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    METHODS[method](supernet, halves())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == required
    with_gradient = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert with_gradient == ["model.norm.weight"]
    assert torch.equal(model.model.norm.weight.grad, torch.ones(48))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", USES_DATA)
def test_an_error_leaves_no_hook_mode_or_gradient_behind(method):
    supernet = build("llama")
    model = supernet.model.train()
    model.lm_head.weight.requires_grad_(False)
    broken = labelled()
    broken["input_ids"][0, 0] = 9999
    with pytest.raises(IndexError):
        METHODS[method](supernet, [labelled(), broken])
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["lm_head.weight"]
    assert len(model.model.layers) == 4
    with pytest.raises(ValueError, match=r"data\.calibration_size"):
        METHODS[method](supernet, [])


def test_scores_of_networks_in_low_precision_are_float32_and_close():
    exact = build("llama")
    rounded = copy.deepcopy(exact).to(torch.bfloat16)
    for name in ("activation", "taylor", "wanda", "magnitude"):
        a, b = (WIDTH[name](supernet, halves())["layers.1.ffn"] for supernet in (exact, rounded))
        assert b.dtype == torch.float32
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.98, name


# ---------------------------------------------------------------- magnitude, taylor


@pytest.mark.parametrize("name", LAYERS)
def test_magnitude_is_the_norm_of_the_units_weights(name):
    supernet = odd(name)
    scores = Magnitude()(supernet)
    block = supernet.model.get_submodule(LAYERS[name])[1]
    group = torch.cat([part.flatten() for part in parts_of_group(name, block, 2)])
    neuron = torch.cat([part.flatten() for part in parts_of_neuron(name, block, 5)])
    assert torch.allclose(scores["layers.1.kv_groups"][2], group.norm())
    assert torch.allclose(scores["layers.1.ffn"][5], neuron.norm())
    if name == "llama-tied":
        a = block.self_attn
        rows = slice(100, 120)  # the second head of group 2
        head = torch.cat([a.q_proj.weight[rows].flatten(), a.q_proj.bias[rows], a.o_proj.weight[:, rows].flatten()])
        assert torch.allclose(scores["layers.1.heads_per_group"][2, 1], head.norm())
        channel = [p.select(d, 7).flatten() for p in supernet.parameters() for d in range(p.ndim) if p.shape[d] == 48]
        assert torch.allclose(scores["hidden"][7], torch.cat(channel).norm())


@pytest.mark.parametrize("name", LAYERS)
def test_taylor_is_the_slope_of_the_loss_in_the_units_weights(name):
    """Finite differences in float64 (but for norms, which the families compute in float32), over two batches of
    different numbers of tokens."""
    supernet = odd(name)
    scores = Taylor()(supernet, halves())
    model = supernet.model.double()
    block = model.get_submodule(LAYERS[name])[1]
    for group in (0, 2):
        expected = slope(model, parts_of_group(name, block, group), labelled())
        assert scores["layers.1.kv_groups"][group].item() == pytest.approx(expected, rel=2e-3, abs=1e-5)
    for neuron in (5, 70):
        expected = slope(model, parts_of_neuron(name, block, neuron), labelled())
        assert scores["layers.1.ffn"][neuron].item() == pytest.approx(expected, rel=2e-3, abs=1e-5)
    if name == "llama-tied":  # embedding and output head are one weight
        channel = [p.select(d, 7) for p in supernet.parameters() for d in range(p.ndim) if p.shape[d] == 48]
        expected = slope(model, channel, labelled())
        assert scores["hidden"][7].item() == pytest.approx(expected, rel=2e-3, abs=1e-5)


def test_taylor_works_where_the_caller_wants_no_gradients():
    expected = Taylor()(build("llama"), halves())
    with torch.no_grad():
        found = Taylor()(build("llama"), halves())
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    unlabelled = labelled() | {"labels": torch.full((3, 12), -100)}
    with pytest.raises(ValueError, match=r"data\.calibration_size"):
        Taylor()(build("llama"), [unlabelled])


# ---------------------------------------------------------------- activation, wanda


def seen_by(model, modules, inputs) -> list[torch.Tensor]:
    """What modules read, the padding left out: (tokens, channels)."""
    seen: dict[int, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda m, args, n=n: seen.update({n: args[0]}))
        for n, module in enumerate(modules)
    ]
    with torch.no_grad():
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    for handle in handles:
        handle.remove()
    return [seen[n].reshape(3, -1, seen[n].shape[-1]) for n in range(len(modules))]


@pytest.mark.parametrize("name", LAYERS)
def test_activation_is_what_the_projections_read(name):
    supernet = odd(name)
    scores = Activation()(supernet, halves())
    inputs = labelled()
    mask = inputs["attention_mask"].bool()
    attended, intermediate = seen_by(
        supernet.model, readers_of(name, supernet.model.get_submodule(LAYERS[name])[2]), inputs
    )
    ffn = torch.stack([intermediate[i][mask[i]].abs().mean(0) for i in range(3)])
    heads = attended.unflatten(2, own_heads(name)).norm(dim=-1)
    heads = torch.stack([heads[i][mask[i]].mean(0) for i in range(3)])
    assert torch.allclose(scores["layers.2.ffn"], ffn.norm(dim=0), rtol=1e-4)
    assert torch.allclose(scores["layers.2.heads_per_group"], heads.norm(dim=0), rtol=1e-4)
    assert torch.allclose(scores["layers.2.kv_groups"], heads.norm(dim=0).sum(1), rtol=1e-4)


REDUCTIONS = {
    "mean": lambda x: x.mean(0),
    "abs_mean": lambda x: x.abs().mean(0),
    "l2": lambda x: x.norm(dim=0),
    "variance": lambda x: x.var(0, unbiased=False),
}


@pytest.mark.parametrize("samples", REDUCTIONS)
@pytest.mark.parametrize("tokens", REDUCTIONS)
def test_hidden_channels_by_every_reduction_of_every_norm_summed_over_layers(tokens, samples):
    supernet = build("llama")
    model, inputs = supernet.model, labelled()
    norms = [model.model.norm]
    norms += [n for layer in model.model.layers for n in (layer.input_layernorm, layer.post_attention_layernorm)]
    outputs: dict[int, torch.Tensor] = {}
    handles = [n.register_forward_hook(lambda m, a, o, k=k: outputs.update({k: o})) for k, n in enumerate(norms)]
    with torch.no_grad():
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    for handle in handles:
        handle.remove()
    assert len(outputs) == 9
    mask = inputs["attention_mask"].bool()
    expected = sum(
        REDUCTIONS[samples](torch.stack([REDUCTIONS[tokens](output[i][mask[i]]) for i in range(3)]))
        for output in outputs.values()
    )
    found = Activation(tokens=tokens, samples=samples)(supernet, halves())["hidden"]
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_wanda_is_the_norm_of_the_weight_metric_of_the_reading_projection(name):
    supernet = odd(name)
    scores = Wanda()(supernet, halves())
    inputs = labelled()
    mask = inputs["attention_mask"].bool()
    projections = readers_of(name, supernet.model.get_submodule(LAYERS[name])[1])
    metrics = []
    for module, seen in zip(projections, seen_by(supernet.model, projections, inputs), strict=True):
        weight = module.weight.T if name == "gpt2" else module.weight
        metrics.append(weight.abs() * seen[mask].norm(dim=0))  # S_ij = |W_ij| ||x_j||
    groups, heads, size = own_heads(name)
    output, down = metrics
    assert torch.allclose(scores["layers.1.ffn"], down.norm(dim=0), rtol=1e-4)
    by_head = output.reshape(-1, groups, heads, size)
    assert torch.allclose(scores["layers.1.kv_groups"], by_head.square().sum((0, 2, 3)).sqrt(), rtol=1e-4)
    if heads > 1:
        assert torch.allclose(scores["layers.1.heads_per_group"], by_head.square().sum((0, 3)).sqrt(), rtol=1e-4)


@pytest.mark.parametrize("name", ["llama-tied", "gpt_neox"])
def test_wanda_of_hidden_channels_is_over_all_that_read_the_residual_stream(name):
    supernet = odd(name)
    model, inputs = supernet.model, labelled()
    blocks = model.get_submodule(LAYERS[name])
    if name == "llama-tied":
        inside = [
            (b.self_attn.q_proj, b.self_attn.k_proj, b.self_attn.v_proj, b.mlp.gate_proj, b.mlp.up_proj) for b in blocks
        ]
    else:
        inside = [(b.attention.query_key_value, b.mlp.dense_h_to_4h) for b in blocks]
    modules = [module for block in inside for module in block] + [model.get_output_embeddings()]
    mask = inputs["attention_mask"].bool()
    squares = [
        (module.weight * seen[mask].norm(dim=0)).square().sum(0)
        for module, seen in zip(modules, seen_by(model, modules, inputs), strict=True)
    ]
    assert torch.allclose(Wanda()(supernet, halves())["hidden"], sum(squares).sqrt(), rtol=1e-4)


def test_wanda_is_what_the_output_loses_without_the_neuron():
    """The norm of the change of the down projection's output over all tokens, when the neuron is silent."""
    supernet = build("llama")
    layer = supernet.model.model.layers[0]
    outputs = []
    layer.mlp.down_proj.register_forward_hook(lambda m, a, o: outputs.append(o[labelled()["attention_mask"].bool()]))
    score = Wanda()(supernet, [labelled()])["layers.0.ffn"][9]
    outputs.clear()
    with torch.no_grad():
        mean_loss(supernet.model, labelled())
        layer.mlp.up_proj.weight[9] = 0
        mean_loss(supernet.model, labelled())
    assert (outputs[0] - outputs[1]).norm().item() == pytest.approx(score.item(), rel=1e-3)


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize("name", FAMILIES)
def test_cosine_is_that_of_the_hidden_states_around_a_block(name):
    supernet = build(name)
    inputs = labelled()
    with torch.no_grad():
        states = supernet.model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True
        ).hidden_states
    kept = inputs["attention_mask"].bool()
    scores = Block()(supernet, halves())["layers"]
    for index in range(3):  # behind the last block, transformers gives the normalised stream
        before, after = states[index][kept], states[index + 1][kept]
        cosine = (before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1)
        assert scores[index].item() == pytest.approx(1 - cosine.mean().item(), abs=1e-5)


def silence(name: str, block) -> None:
    """A block that writes nothing into the residual stream is as good as none."""
    with torch.no_grad():
        for module in readers_of(name, block):
            for parameter in module.parameters():
                parameter.zero_()


@pytest.mark.parametrize("name", LAYERS)
def test_loss_and_perplexity_are_those_without_the_block(name):
    inputs = labelled()
    supernet = build(name)
    growth = Block("loss")(supernet, halves())["layers"]
    perplexity = Block("perplexity")(supernet, halves())["layers"]
    full = mean_loss(supernet.model, inputs)
    for index in range(4):
        silent = build(name)
        silence(name, silent.model.get_submodule(LAYERS[name])[index])
        without = mean_loss(silent.model, inputs)
        assert growth[index].item() == pytest.approx(without - full, abs=1e-5)
        expected = torch.tensor(without).exp() - torch.tensor(full).exp()
        assert perplexity[index].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-3)
    assert torch.equal(growth.argsort(), perplexity.argsort())


def test_first_and_last_layers_are_kept_by_the_controls():
    for name, order in (("first_n", (0, 1, 2, 3)), ("last_n", (3, 2, 1, 0))):
        supernet = build("llama")
        supernet.sort(Block(name)(supernet))
        assert supernet.layer_order == order


def test_a_single_layer_cannot_be_removed():
    supernet = build("llama", num_hidden_layers=1)
    assert Block()(supernet, halves())["layers"].shape == (1,)
    with pytest.raises(ValueError, match=r"importance\.method=loss: .*importance\.method=cosine"):
        Block("loss")(supernet, halves())


def test_a_perplexity_beyond_floats_names_the_loss():
    supernet = build("llama")
    supernet.model.lm_head.weight.data.mul_(1e4)
    with pytest.raises(ValueError, match=r"importance\.method=loss gives the same order"):
        Block("perplexity")(supernet, halves())


def test_combined_is_both_and_sees_a_stream_of_batches_twice():
    supernet = build("llama")
    stream = (part for part in halves())
    found = Combined(Wanda(), Block("loss"))(supernet, stream)
    expected = Wanda()(supernet, halves()) | Block("loss")(supernet, halves())
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


@pytest.mark.parametrize(
    ("combined", "says"),
    [
        (
            Combined(Block(), Block()),
            r"importance\.width=Block scores layers: .*importance@importance\.width=activation",
        ),
        (
            Combined(Magnitude(), Random()),
            r"importance\.depth=Random scores units: .*importance@importance\.depth=block",
        ),
    ],
)
def test_combined_refuses_what_is_in_the_wrong_place(combined, says):
    with pytest.raises(ValueError, match=says):
        combined(build("llama"), halves())


def test_removing_the_blocks_leaves_the_network_whole():
    supernet = build("gpt2")
    before = logits_of(supernet.model, batch())
    Block("loss")(supernet, halves())
    assert torch.equal(logits_of(supernet.model, batch()), before)
    assert supernet.num_parameters(supernet.largest()) == sum(p.numel() for p in supernet.parameters())


# ---------------------------------------------------------------- settings, saved scores


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"importance\.tokens"):
        Activation(tokens="median")
    with pytest.raises(ValueError, match=r"importance\.method"):
        Block("sine")
    with pytest.raises(ValueError, match=r"importance\.seed=-1"):
        Random(-1)


def test_random_scores_are_a_function_of_the_seed():
    supernet = build("llama")
    first, again, other = (Random(seed)(supernet) for seed in (0, 0, 1))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not any(torch.equal(value, other[key]) for key, value in first.items())


def test_saved_scores_are_used_again(tmp_path):
    supernet = build("llama-tied")
    scores = Combined(Taylor(), Block())(supernet, halves())
    write_scores(scores, tmp_path, method="both", supernet=supernet)
    found = File(str(tmp_path / IMPORTANCE_FILE))(build("llama-tied"))
    assert found.keys() == scores.keys()
    assert all(torch.equal(value, scores[key]) for key, value in found.items())
    in_low_precision = build("llama-tied").to(torch.bfloat16)
    assert File(str(tmp_path / IMPORTANCE_FILE))(in_low_precision).keys() == scores.keys()


def test_scores_say_by_which_method_they_were_made(tmp_path):
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    methods = {first: Activation(), second: File(str(first / IMPORTANCE_FILE))}
    methods[third] = File(str(second / IMPORTANCE_FILE))
    for folder, method in methods.items():
        folder.mkdir()
        sort_by_importance(build("llama"), method, halves, folder, resumes=False)
    said = [recorded_method(folder / IMPORTANCE_FILE, setting="x") for folder in methods]
    made = "Activation(abs_mean, l2)"
    assert said == [made, f"{made}, from {first / IMPORTANCE_FILE}", f"{made}, from {second / IMPORTANCE_FILE}"]
    assert in_words(Combined(Random(3), Block())) == "Random(seed 3); layers by Block(cosine)"
    assert in_words(Magnitude()) == "Magnitude"


def test_a_folder_in_place_of_a_file_of_scores_is_refused_with_the_file_in_it(tmp_path):
    with pytest.raises(ValueError, match=rf"importance\.path={tmp_path} is a folder; name a run's"):
        File(str(tmp_path))(build("llama"))
    sort_by_importance(build("llama"), Magnitude(), halves, tmp_path, resumes=False)
    with pytest.raises(ValueError, match=rf"is a folder; name {tmp_path / IMPORTANCE_FILE} in it"):
        File(str(tmp_path))(build("llama"))


def test_scores_of_another_network_are_refused(tmp_path):
    path = tmp_path / IMPORTANCE_FILE
    supernet = build("llama")
    scores = Magnitude()(supernet)
    write_scores(scores, tmp_path, method="Magnitude()", supernet=supernet)
    tuned = build("llama")
    tuned.model.model.layers[3].mlp.up_proj.weight.data[4].mul_(1.1)
    sorted_already = build("llama")
    sorted_already.sort(scores)
    others = {
        "family": build("mistral"),
        "axes": build("llama", intermediate_size=88),
        "weights": tuned,
        "weights ": sorted_already,
    }
    for key, other in others.items():
        with pytest.raises(ValueError, match=rf"importance\.path=.* of another network, {key.strip()} .* model\.path"):
            File(str(path))(other)


def test_damaged_foreign_and_missing_files_are_refused(tmp_path):
    supernet = build("llama")
    scores = Magnitude()(supernet)
    write_scores(scores, tmp_path, method="Magnitude()", supernet=supernet)
    path = tmp_path / IMPORTANCE_FILE
    damaged, foreign = tmp_path / "damaged.safetensors", tmp_path / "foreign.safetensors"
    damaged.write_bytes(path.read_bytes()[:100])
    save_file(load_file(path), foreign)
    for file, says in ((damaged, "damaged"), (foreign, "does not say of which"), (tmp_path / "no", "there is no file")):
        with pytest.raises(ValueError, match=rf"importance\.path=.*{says}.*importance=activation"):
            File(str(file))(supernet)


def test_the_fingerprint_sees_uneven_networks_too():
    supernet = build("llama")
    layers = supernet.largest().layers
    cut = type(layers[0])(1, 2, 1, 8, 40)
    from nas_llm.models.supernet import Supernet

    uneven = Supernet(supernet.extract(Architecture(40, (layers[0], cut))))
    assert identity(uneven)["axes"] == '{"hidden": 40, "layers": [[3, 2, 8, 80], [2, 1, 8, 40]]}'
    assert identity(supernet)["axes"] == '{"hidden": 48, "layers": [4, 3, 2, 8, 80]}'


def test_a_method_without_data_asks_for_none(tmp_path):
    def refuse():
        raise AssertionError("no batches are needed")

    for method in (Magnitude(), Random(), Block("last_n")):
        sort_by_importance(build("llama"), method, refuse, tmp_path, resumes=False)
    with pytest.raises(AssertionError, match="needed"):
        sort_by_importance(build("llama"), Wanda(), refuse, tmp_path, resumes=False)


def test_a_resumed_run_takes_the_scores_of_its_own_network_only(tmp_path):
    first, resumed = build("llama"), build("llama")
    sort_by_importance(first, Random(3), list, tmp_path, resumes=False)
    sort_by_importance(resumed, Random(4), list, tmp_path, resumes=True)
    assert torch.equal(first.model.lm_head.weight, resumed.model.lm_head.weight)
    with pytest.raises(ValueError, match="run_dir=.*another network, family llama"):
        sort_by_importance(build("mistral"), Random(3), list, tmp_path, resumes=True)
