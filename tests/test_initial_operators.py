"""How operators begin: against numpy's least squares, SparseGPT and GPTQ by themselves, and plain slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_block_walk import calibration, hooks
from test_families import FAMILIES, batch, build
from test_pool import pool
from torch import Tensor, nn

from nas_llm.models.block_walk import Projection, walk
from nas_llm.models.input_statistics import Hessian
from nas_llm.models.operator_assembly import assemble, swapped
from nas_llm.models.operator_modules import build_sublayer, sublayer_of
from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import (
    Ffn,
    Heads,
    Identity,
    Linear,
    Operator,
    OperatorNetwork,
    Quantized,
    Sparse,
    Teacher,
)
from nas_llm.operators import Place
from nas_llm.operators.initial import DAMPING, initial_modules, is_trained
from nas_llm.operators.least_squares import refitted
from nas_llm.operators.projections import sublayer_projections
from nas_llm.quantization.gptq import GPTQ


def many(count: int = 4, seed: int = 0) -> list[dict[str, Tensor]]:
    """Batches of 8 sequences of 24 tokens, padded on either side."""
    found = []
    for number in range(count):
        ids = torch.randint(3, 96, (8, 24), generator=torch.Generator().manual_seed(100 * seed + number))
        mask = torch.ones_like(ids)
        mask[0, :6] = mask[1, 15:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


@torch.no_grad()
def watched(model: nn.Module, module: nn.Module, batches: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """What a module reads and writes, (tokens, channels) without padding."""
    read, written = [], []

    def hook(module, args, kwargs, output):
        counted = mask.bool()
        read.append((args[0] if args else kwargs["hidden_states"])[counted])
        written.append((output[0] if isinstance(output, tuple) else output)[counted])

    handle = module.register_forward_hook(hook, with_kwargs=True)
    for one in batches:
        mask = one["attention_mask"]
        model(**one, use_cache=False)
    handle.remove()
    return torch.cat(read), torch.cat(written)


def square_head(supernet: Supernet, place: Place, module: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    """MSE(student, teacher) / MSE(teacher, 0) on the teacher's inputs."""
    _, expected = watched(supernet.model, sublayer_of(supernet, *place), batches)
    with swapped(supernet, {place: module}) as model:  # nothing before the sublayer changes
        _, found = watched(model, module, batches)
    return float((found - expected).square().sum() / expected.square().sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_all_operators_of_all_families_run_and_the_teacher_stays(family):
    supernet = build(family)
    before = {key: value.clone() for key, value in supernet.model.state_dict().items()}
    operators = {place: found for place, found in pool("full")(supernet).items() if place[0] == 1}
    made = initial_modules(supernet, operators, iter(calibration()))
    assert hooks(supernet.model) == 0
    assert made.keys() == operators.keys()
    pointers = {p.data_ptr() for p in supernet.model.parameters()}
    for place, modules in made.items():
        assert list(modules) == [operator for operator in operators[place] if operator != Teacher()]
        for module in modules.values():
            tensors = [*module.parameters(), *module.buffers()]
            assert not pointers & {tensor.data_ptr() for tensor in tensors if tensor.numel()}
            pointers |= {tensor.data_ptr() for tensor in tensors if tensor.numel()}
            with swapped(supernet, {place: module}) as model, torch.no_grad():
                assert model(**batch(), use_cache=False).logits.isfinite().all()
    for key, value in supernet.model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("place", [(1, "attention"), (2, "mlp")])
def test_linear_is_numpys_least_squares(place):
    supernet = build("llama")
    x, y = watched(supernet.model, sublayer_of(supernet, *place), many())
    made = initial_modules(supernet, {place: [Linear()]}, many())[place][Linear()]
    centred = (x - x.mean(0)).double().numpy()
    damping = DAMPING * np.square(centred).sum(0).mean()
    rows = np.concatenate([centred, damping**0.5 * np.eye(48)])
    targets = np.concatenate([(y - y.mean(0)).double().numpy(), np.zeros((48, 48))])
    weight = np.linalg.lstsq(rows, targets, rcond=None)[0].T
    assert np.abs(made.linear.weight.detach().numpy() - weight).max() < 1e-3 * np.abs(weight).max()
    bias = y.mean(0).numpy() - weight @ x.mean(0).numpy()
    assert np.abs(made.linear.bias.detach().numpy() - bias).max() < 1e-3 * np.abs(bias).max()
    whole = np.concatenate([x.numpy(), np.ones((len(x), 1))], axis=1)
    best = np.square(whole @ np.linalg.lstsq(whole, y.numpy(), rcond=None)[0] - y.numpy()).sum() / y.square().sum()
    assert best <= square_head(supernet, place, made, many()) * 1.0001 < 1.01 * best < 1


def test_the_output_projection_is_numpys_least_squares_on_the_units_that_stay():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    weight = torch.randn(5, 12, generator=generator)
    for kept in (torch.arange(7), torch.randn(7, 12, generator=generator)):
        seen = (z[:, kept] if kept.ndim == 1 else z @ kept.T).double().numpy()
        # the Hessian has a factor of two, and so has the damping
        damping = 0.1 * np.square(seen).sum(0).mean()
        rows = np.concatenate([seen, damping**0.5 * np.eye(7)])
        targets = np.concatenate([(z @ weight.T).double().numpy(), np.zeros((7, 5))])
        expected = np.linalg.lstsq(rows, targets, rcond=None)[0].T
        found = refitted(weight, 2 * z.T @ z, kept, 0.1).numpy()
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt", "phi3"])
def test_fewer_units_begin_nearer_than_plain_slices(family):
    supernet = build(family)
    groups, heads, head_dim, ffn = supernet.largest().layers[0].shape
    operators: dict[Place, list[Operator]] = {(1, "attention"): [Heads(groups - 1, heads, head_dim)]}
    if supernet.sublayers["mlp"]:
        operators[1, "mlp"] = [Ffn(ffn // 2)]
    for place, modules in initial_modules(supernet, operators, many(8)).items():
        for operator, module in modules.items():
            plain = square_head(supernet, place, build_sublayer(supernet, *place, operator), many(2, seed=1))
            assert square_head(supernet, place, module, many(2, seed=1)) < 0.95 * plain


def planted(supernet: Supernet, layer: int, pairs: list[int]) -> None:
    """Queries and keys whose logits come from these rotary pairs nearly alone."""
    attention = supernet.blocks[layer].self_attn
    size = supernet.largest().layers[layer].head_dim
    channels = torch.full((size,), 0.2)
    channels[[*pairs, *(pair + size // 2 for pair in pairs)]] = 4.0
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.data *= channels.repeat(projection.weight.shape[0] // size).unsqueeze(1)


@pytest.mark.parametrize("pairs", [[1, 3], [2, 3], [0, 2]])
def test_narrow_heads_keep_the_pairs_that_matter(pairs):
    supernet, place, operator = build("llama"), (1, "attention"), Heads(3, 2, 4)
    planted(supernet, 1, pairs)
    made = initial_modules(supernet, {place: [operator]}, many())[place][operator]
    assert sorted(made.rotary_pairs.tolist()) == pairs
    error = square_head(supernet, place, made, many(2, seed=1))
    rest = [pair for pair in range(4) if pair not in pairs]
    for order in (None, {"head_dim/2": torch.tensor(rest + pairs)}, {"head_dim/2": torch.tensor(pairs + rest)}):
        plain = build_sublayer(supernet, 1, "attention", operator, orders=order)
        assert error < 0.75 * square_head(supernet, place, plain, many(2, seed=1))


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen2", "qwen3", "gemma", "gemma2", "olmo2", "gpt2", "opt"])
def test_narrow_heads_begin_nearer_than_plain_slices(family):
    supernet, place = build(family), (1, "attention")
    groups, heads, head_dim, _ = supernet.largest().layers[0].shape
    operators = [Heads(groups, heads, head_dim // 2), Heads(groups - 1, heads, head_dim // 2)]
    for operator, module in initial_modules(supernet, {place: operators}, many(8))[place].items():
        plain = square_head(supernet, place, build_sublayer(supernet, *place, operator), many(2, seed=1))
        assert square_head(supernet, place, module, many(2, seed=1)) < 0.9 * plain


def first_hessians(supernet: Supernet) -> dict[str, Hessian]:
    return next(walk(supernet, calibration())).collect(Hessian)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("sublayer", ["attention", "mlp"])
def test_sparse_sublayers_have_their_pattern_and_beat_magnitude(sublayer, family):
    supernet, place = build(family), (0, sublayer)
    found = sublayer_projections(supernet, *place)
    hessians = first_hessians(supernet)
    operators = [Sparse("2:4", which) for which in ("in", "out", "both")]
    for operator, module in initial_modules(supernet, {place: operators}, calibration())[place].items():
        changed = found.of(operator.projections)
        for name, dense in (found.first | found.last).items():
            weight = Projection(name, module.get_submodule(name)).weight
            if name not in changed:
                assert torch.equal(weight, dense.weight)
                continue
            groups = weight.unflatten(1, (-1, 4))
            assert ((groups == 0).sum(-1) == 2).all()
            least = dense.weight.unflatten(1, (-1, 4)).abs().argsort(-1)[..., :2]
            magnitude = dense.weight.unflatten(1, (-1, 4)).scatter(-1, least, 0.0).flatten(1)
            hessian = hessians[dense.name].matrix
            error = [float(((w - dense.weight) @ hessian * (w - dense.weight)).sum()) for w in (weight, magnitude)]
            assert error[0] < error[1]


@pytest.mark.parametrize("sublayer", ["attention", "mlp"])
@pytest.mark.parametrize(("bits", "group"), [(4, 16), (8, 8)])
def test_quantised_sublayers_are_gptqs_of_the_same_hessian(bits, group, sublayer):
    supernet, place = build("llama-tied"), (0, sublayer)
    found, hessians = sublayer_projections(supernet, *place), first_hessians(supernet)
    operators = [Quantized(bits, group, which) for which in ("in", "out", "both")]
    for operator, module in initial_modules(supernet, {place: operators}, calibration())[place].items():
        changed = found.of(operator.projections)
        for name, dense in (found.first | found.last).items():
            layer = module.get_submodule(name)
            assert isinstance(layer, QuantizedLinear) == (name in changed)
            assert torch.equal(layer.bias, dense.module.bias)
            if name in changed:
                expected = GPTQ(bits, group).quantize(dense.weight, hessians[dense.name].matrix)
                assert torch.equal(layer.quantized.codes, expected.codes)
                assert torch.equal(layer.weight_scale, expected.scales)


def test_initial_operators_are_assembled_as_they_are():
    supernet = build("llama")
    operators: dict[Place, list[Operator]] = {
        (0, "attention"): [Heads(2, 2, 4)],
        (1, "attention"): [Linear()],
        (1, "mlp"): [Identity()],
        (2, "mlp"): [Ffn(40)],
        (3, "attention"): [Sparse("2:4", "both")],
    }
    made = {p: found[operators[p][0]] for p, found in initial_modules(supernet, operators, calibration()).items()}
    with swapped(supernet, made) as model, torch.no_grad():
        expected = model(**batch(), use_cache=False).logits
    network = OperatorNetwork.of({place: found[0] for place, found in operators.items()}, 4)
    small = assemble(supernet, network, lambda layer, sublayer, operator: made[layer, sublayer])
    with torch.no_grad():
        torch.testing.assert_close(small(**batch(), use_cache=False).logits, expected)


def test_one_pass_goes_no_further_than_the_last_layer_concerned():
    supernet, ran = build("llama"), []
    handles = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(supernet.blocks)]
    initial_modules(supernet, {(1, "mlp"): [Linear()], (0, "mlp"): [Ffn(40)]}, many(2))
    assert ran == [0, 1] * 2
    ran.clear()
    initial_modules(supernet, {(1, "mlp"): [Identity(), Teacher()]}, many(2))
    assert not ran
    for handle in handles:
        handle.remove()


def test_what_is_wrong_is_refused():
    supernet = build("llama")
    with pytest.raises(ValueError, match="data.calibration_size"):
        initial_modules(supernet, {(0, "mlp"): [Linear()]}, [])
    with pytest.raises(ValueError, match="does not belong"):
        initial_modules(supernet, {(0, "mlp"): [Heads(1, 1, 8)]}, many(1))
    assert hooks(supernet.model) == 0
    supernet.blocks[1].mlp.down_proj.weight.data.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"layer 2, mlp: .*not finite"):
        initial_modules(supernet, {(2, "mlp"): [Linear()]}, many(1))


def test_which_operators_are_distilled():
    trained = [Linear(), Heads(1, 1, 8), Ffn(8)]
    assert all(map(is_trained, trained))
    assert not any(map(is_trained, [Teacher(), Identity(), Sparse("2:4", "in"), Quantized(4, 8, "in")]))
