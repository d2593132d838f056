"""Sparsity against slow, independent implementations: which weights go, what becomes of the others, how many."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from test_block_walk import calibration, plain_hessians
from test_families import build
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from nas_llm.lightning.preparation import sparsify
from nas_llm.models.block_walk import projections
from nas_llm.models.input_statistics import Hessian
from nas_llm.models.supernet import Supernet
from nas_llm.run_directory import SPARSE_WEIGHTS_FILE, SPARSITY_FILE
from nas_llm.sparsity import Sparsity, ZeroCounts, zeros_of_model
from nas_llm.sparsity.amount import Amount
from nas_llm.sparsity.magnitude import Magnitude
from nas_llm.sparsity.sparsegpt import SparseGPT, inverse_factor, prune
from nas_llm.sparsity.wanda import Wanda

METHODS = [Magnitude, Wanda, SparseGPT]


def tiny(family: str = "llama", **changes) -> Supernet:
    return build(family, num_hidden_layers=2, **changes)


def weights(supernet: Supernet) -> dict[str, Tensor]:
    """(out, in) of every linear module of the blocks."""
    return {p.name: p.weight.clone() for of_block in projections(supernet) for p in of_block}


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.4, None), (None, "2:4")])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_wanda_is_a_loop_over_rows(family, sparsity, pattern):
    supernet = tiny(family)
    oracle = copy.deepcopy(supernet.model)
    Wanda(sparsity, pattern)(supernet, calibration())
    found = weights(supernet)
    for of_block in projections(supernet):
        squares = plain_hessians(oracle, [p.name for p in of_block])  # of the network with the blocks before it sparse
        for name in squares:
            module = oracle.get_submodule(name)
            weight = module.weight.data.T if isinstance(module, Conv1D) else module.weight.data
            width = weight.shape[1]
            for row in weight:
                scores = [abs(row[j].item()) * (squares[name][j, j].item() / 2) ** 0.5 for j in range(width)]
                groups = [range(width)] if sparsity else [range(g, g + 4) for g in range(0, width, 4)]
                for group in groups:
                    for j in sorted(group, key=lambda j: scores[j])[: int(sparsity * width) if sparsity else 2]:
                        row[j] = 0
            assert torch.equal(found[name], weight), name


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.3, None), (None, "3:4")])
def test_magnitude_is_a_sort_of_each_matrix(sparsity, pattern):
    supernet = tiny()
    before = weights(supernet)
    Magnitude(sparsity, pattern)(supernet, ())
    for name, after in weights(supernet).items():
        weight = before[name]
        flat = weight.abs().flatten()
        if sparsity:
            gone = flat.argsort()[: int(0.3 * flat.numel())]
        else:
            gone = torch.arange(0, flat.numel(), 4) + flat.view(-1, 4).argmin(1)
        expected = weight.flatten().clone()
        expected[gone] = 0
        assert torch.equal(after.flatten(), expected)


def problem(rows: int = 6, width: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight and the Hessian of correlated inputs with channels of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(64, width, generator=generator) @ torch.randn(width, width, generator=generator)
    inputs = mixed * torch.rand(width, generator=generator).mul(3).exp()
    hessian = Hessian(width, torch.device("cpu"))
    hessian.add(inputs)
    return torch.randn(rows, width, generator=generator), hessian.matrix


def optimal_brain_surgeon(weight: Tensor, hessian: Tensor, amount: Amount, block_size: int, damping: float) -> Tensor:
    """Float64, one row and column at a time, every inverse made anew from the Hessian of the columns that are left."""
    weight, damped = weight.double().clone(), hessian.double().clone()
    damped += damping * damped.diagonal().mean() * torch.eye(len(damped), dtype=torch.float64)
    rows, width = weight.shape
    inverses = [torch.linalg.inv(damped[j:, j:]) for j in range(width)]
    gone: set[tuple[int, int]] = set()
    for column in range(width):
        if amount.fraction is not None and column % block_size == 0:
            stop = min(column + block_size, width)
            cost = {(r, j): weight[r, j] ** 2 / inverses[j][0, 0] for r in range(rows) for j in range(column, stop)}
            count = int(amount.fraction * rows * stop) - int(amount.fraction * rows * column)
            gone |= set(sorted(cost, key=lambda place: cost[place].item())[:count])
        if amount.fraction is None and column % amount.group == 0:
            for r in range(rows):
                cost = {(r, j): weight[r, j] ** 2 / inverses[j][0, 0] for j in range(column, column + amount.group)}
                gone |= set(sorted(cost, key=lambda place: cost[place].item())[: amount.group - amount.kept])
        for r in range(rows):
            if (r, column) in gone:
                weight[r, column:] -= weight[r, column] / inverses[column][0, 0] * inverses[column][0]
                weight[r, column] = 0
    return weight


@pytest.mark.parametrize("block_size", [4, 8, 16, 128])
@pytest.mark.parametrize("amount", [Amount(0.5), Amount(0.3), Amount(None, 2, 4), Amount(None, 1, 4)])
def test_sparsegpt_is_the_exact_update_column_by_column(amount, block_size):
    weight, hessian = problem()
    expected = optimal_brain_surgeon(weight, hessian, amount, block_size, 0.01)
    found = prune(weight, inverse_factor(hessian, 0.01, "x"), amount, block_size)
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-3)
    assert (found - weight).abs().max() > 0.1  # the others were updated


@pytest.mark.parametrize("amount", [Amount(0.5), Amount(None, 2, 4)])
def test_sparsegpt_gives_the_least_output_error_on_correlated_inputs(amount):
    for seed in range(5):
        weight, hessian = problem(rows=32, width=64, seed=seed)
        norms = (hessian.diagonal() / 2).sqrt()
        pruned = {
            "magnitude": weight.masked_fill(amount.lowest_of_all(weight.abs()), 0),
            "wanda": weight.masked_fill(amount.lowest(weight.abs() * norms), 0),
            "sparsegpt": prune(weight, inverse_factor(hessian, 0.01, "x"), amount, 32),
        }
        assert {int((one == 0).sum()) for one in pruned.values()} == {weight.numel() // 2}
        error = {name: (((weight - one) @ hessian) * (weight - one)).sum().item() for name, one in pruned.items()}
        assert 1.5 * error["sparsegpt"] < error["wanda"] < error["magnitude"], (seed, error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_zeros_are_exactly_as_many_as_asked_for_and_the_rest_of_the_network_stays(method, family, dtype):
    for sparsity, pattern in ((0.3, None), (None, "2:4"), (None, "1:4"), (None, "4:8")):
        supernet = tiny(family).to(dtype)
        before = {key: value.clone() for key, value in supernet.model.state_dict().items()}
        counts = method(sparsity, pattern)(supernet, calibration())
        found = weights(supernet)
        assert counts.by_name.keys() == found.keys()
        for name, weight in found.items():
            gone = weight == 0
            assert counts.by_name[name].zeros == gone.sum()
            if pattern:
                kept, group = map(int, pattern.split(":"))
                assert (gone.unflatten(1, (-1, group)).sum(-1) == group - kept).all()
            elif method is Wanda:
                assert (gone.sum(1) == int(0.3 * gone.shape[1] + 1e-6)).all()
            else:
                assert gone.sum() == int(0.3 * gone.numel() + 1e-6)
            if method is not SparseGPT:
                stored = before[f"{name}.weight"]
                original = stored.T if family == "gpt2" else stored
                assert torch.equal(weight[~gone], original[~gone])
        sparse = {f"{name}.weight" for name in found}
        after = supernet.model.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before.items() if key not in sparse)


def test_targets_are_ends_of_names():
    supernet = tiny()
    counts = Wanda(0.5, targets=["q_proj", "layers.1.mlp.up_proj"])(supernet, calibration())
    layers = [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    assert set(counts.by_name) == {*layers, "model.layers.1.mlp.up_proj"}
    whole = zeros_of_model(supernet.model)
    assert {name for name, zeros in whole.by_name.items() if zeros.zeros} == {
        f"{name}.weight" for name in counts.by_name
    }


def test_channels_that_are_never_active_go_first_and_a_dead_layer_is_pruned_by_magnitude():
    weight, hessian = problem()
    hessian[:, 3] = hessian[3] = 0
    found = prune(weight, inverse_factor(hessian, 0.01, "x"), Amount(0.5), 128)
    assert not found[:, 3].any()
    dead = prune(weight, inverse_factor(torch.zeros(16, 16), 0.01, "x"), Amount(None, 2, 4), 128)
    assert torch.equal(dead, weight.masked_fill(Amount(None, 2, 4).lowest(weight.abs()), 0))


def test_equal_scores_and_a_sparsity_of_zero_keep_the_counts():
    assert Amount(0.5).lowest(torch.ones(3, 10)).sum(1).tolist() == [5, 5, 5]
    assert Amount(0.29).zeros(100) == 29
    assert Amount(0.99).zeros(10) == 9
    supernet = tiny()
    before = weights(supernet)
    assert SparseGPT(0.0)(supernet, calibration()).overall.zeros == 0
    assert all(torch.equal(weight, before[name]) for name, weight in weights(supernet).items())


def test_parameters_are_counted_once_and_zeros_exactly():
    supernet = tiny("llama-tied")
    supernet.model.get_input_embeddings()._parameters["weight"].data[:2] = 0
    counts = zeros_of_model(supernet.model)
    assert counts.overall.size == supernet.num_parameters(supernet.largest())
    assert counts.overall.zeros == 2 * 48
    assert counts.overall.nonzero == counts.overall.size - 96
    assert counts.by_name["model.embed_tokens.weight"].sparsity == pytest.approx(2 / 96)
    assert ZeroCounts({}).overall.sparsity == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sparsity": 1.0}, r"sparsity\.sparsity=1\.0: allowed is .* from 0 to below 1"),
        ({"sparsity": -0.1}, r"sparsity\.sparsity=-0\.1"),
        ({"sparsity": 0.5, "pattern": "2:4"}, r"sparsity\.sparsity=0\.5 and sparsity\.pattern=2:4: .*=null"),
        ({}, r"neither .*: set sparsity\.sparsity=0\.5, or sparsity\.pattern=2:4"),
        ({"pattern": "4:2"}, r"sparsity\.pattern=4:2: allowed is N:M"),
        ({"pattern": "0:4"}, r"sparsity\.pattern=0:4"),
        ({"pattern": "2/4"}, r"sparsity\.pattern=2/4"),
    ],
)
def test_impossible_settings_are_refused(method, settings, says):
    with pytest.raises(ValueError, match=says):
        method(**settings)


def test_impossible_settings_of_sparsegpt_are_refused():
    with pytest.raises(ValueError, match=r"block_size=6: allowed is a multiple of 4, by sparsity\.pattern=2:4"):
        SparseGPT(pattern="2:4", block_size=6)
    with pytest.raises(ValueError, match=r"whose 7 has to divide the widths .*; as sparsity\.block_size=126"):
        SparseGPT(pattern="3:7")
    with pytest.raises(ValueError, match=r"sparsity\.block_size=0"):
        SparseGPT(0.5, block_size=0)
    with pytest.raises(ValueError, match=r"sparsity\.damping=-1"):
        SparseGPT(0.5, damping=-1)
    with pytest.raises(
        ValueError, match=r"sparsity\.damping=0\.0: the Hessian of what .*self_attn.* set sparsity\.damping=0\.01"
    ):
        SparseGPT(0.5, damping=0.0)(tiny(hidden_size=48), calibration()[2:])  # 7 tokens


@pytest.mark.parametrize("method", METHODS)
def test_what_the_network_cannot_be_is_refused_and_leaves_it_as_it_was(method):
    supernet = tiny()
    before = weights(supernet)
    with pytest.raises(ValueError, match=r"pattern=2:7 does not divide the width of model\.layers\.0\..*, 48"):
        method(pattern="2:7", **({"block_size": 14} if method is SparseGPT else {}))(supernet, calibration())
    for target, said in (("lm_head", "lm_head"), ("proj", "proj")):
        with pytest.raises(ValueError, match=rf"targets=\[q_proj,{target}\]: {said} is no .* q_proj, k_proj, .* head"):
            method(0.5, targets=["q_proj", target])(supernet, calibration())
    with pytest.raises(ValueError, match=r"targets=\[\]: nothing is no linear module"):
        method(0.5, targets=[])(supernet, calibration())
    assert all(torch.equal(weight, before[name]) for name, weight in weights(supernet).items())


def test_no_data_and_numbers_that_are_not_finite_are_refused():
    for method in (Wanda, SparseGPT):
        with pytest.raises(ValueError, match=r"no calibration batch: set data\.calibration_size"):
            method(0.5)(tiny(), [])
        supernet = tiny()
        supernet.model.model.embed_tokens._parameters["weight"].data[5:] = float("nan")
        with pytest.raises(ValueError, match=r"what model\.layers\.0\.self_attn\.q_proj reads .* not finite"):
            method(0.5)(supernet, calibration())
    for method in METHODS:
        supernet = tiny()
        supernet.model.model.layers[1].mlp.down_proj._parameters["weight"].data[0, 0] = float("nan")
        with pytest.raises(ValueError, match=r"weights of model\.layers\.1\.mlp\.down_proj, .* not finite"):
            method(0.5)(supernet, calibration())


def test_a_run_keeps_its_sparse_weights_and_a_resumed_one_takes_them(tmp_path, capsys):
    first, resumed = tiny(), tiny()
    method: Sparsity = SparseGPT(0.5)
    sparsify(first, method, calibration, tmp_path, resumes=False)
    whole = zeros_of_model(first.model).overall
    line = capsys.readouterr().out.strip()
    assert line.startswith("sparsity: 50.0% of the ")
    assert line.endswith(f"zero; {whole.nonzero:,} of all {whole.size:,} parameters are not")
    written = json.loads((tmp_path / SPARSITY_FILE).read_text())
    assert written["method"] == repr(method)
    assert (written["parameters"], written["nonzero_parameters"]) == (whole.size, whole.nonzero)
    assert written["overall"]["zeros"] == whole.zeros
    assert written["by_name"].keys() == weights(first).keys()

    def refuse():
        raise AssertionError("a resumed run computes nothing")

    sparsify(resumed, method, refuse, tmp_path, resumes=True)
    assert all(torch.equal(value, weights(first)[name]) for name, value in weights(resumed).items())
    with pytest.raises(ValueError, match=r"sparsity\.safetensors is of another network"):
        sparsify(tiny(intermediate_size=64), method, refuse, tmp_path, resumes=True)
    (tmp_path / SPARSE_WEIGHTS_FILE).write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"sparsity\.safetensors is damaged"):
        sparsify(tiny(), method, refuse, tmp_path, resumes=True)
    sparsify(first, None, refuse, tmp_path, resumes=False)
