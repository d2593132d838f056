"""Baselines against the same thing done by hand: with hooks, in stock models without the pieces, by brute force."""

from __future__ import annotations

import copy
from itertools import combinations

import pytest
import torch
from test_families import build
from torch import nn
from torch.nn import functional as F

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.baselines import Pruned
from nas_llm.baselines.budget import Budget
from nas_llm.baselines.quantized import GPTQBaseline, RoundToNearestBaseline
from nas_llm.baselines.shortened_llama import ShortenedLlama, taylor_scores
from nas_llm.baselines.shortgpt import ShortGPT
from nas_llm.baselines.sparse import MagnitudeBaseline, SparseGPTBaseline, WandaBaseline
from nas_llm.baselines.truncation import Truncation
from nas_llm.baselines.unast_depth import UnastDepth
from nas_llm.models.elastic import ElasticModule
from nas_llm.models.loading import from_pretrained
from nas_llm.models.saving import save_pretrained
from nas_llm.models.stock import is_stock
from nas_llm.models.supernet import Supernet
from nas_llm.objectives import mean_token_loss
from nas_llm.quantization.gptq import GPTQ
from nas_llm.sparsity.counting import has_pattern, pattern_of, zeros_of_model
from nas_llm.sparsity.sparsegpt import SparseGPT
from nas_llm.sparsity.wanda import Wanda


def batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(2):
        ids = torch.randint(3, 96, (3, 12), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 9:] = 0
        found.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    return found


def plain(supernet: Supernet) -> nn.Module:
    """A stock model of its own."""
    return supernet.extract(supernet.largest()).eval()


def blocks_of(model: nn.Module) -> nn.ModuleList:
    return model.gpt_neox.layers if "gpt_neox" in dict(model.named_children()) else model.model.layers


def without(model: nn.Module, gone: list[int]) -> nn.Module:
    """A stock model without some of its blocks."""
    model = copy.deepcopy(model)
    blocks = blocks_of(model)
    for index in sorted(gone, reverse=True):
        del blocks[index]
    for index, block in enumerate(blocks):
        for module in block.modules():
            if "layer_idx" in vars(module):
                module.layer_idx = index
    model.config.num_hidden_layers = len(blocks)
    return model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    batch = batches()[0]
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits


def saved_again(pruned: Pruned, path) -> nn.Module:
    save_pretrained(pruned.model, path)
    return from_pretrained(path).eval()


# ---------------------------------------------------------------- whole layers


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma3_text"])
def test_shortgpt_drops_the_layers_that_turn_the_stream_least(name, tmp_path):
    supernet = build(name)
    model = plain(supernet)
    turns, tokens = torch.zeros(4, dtype=torch.float64), 0
    reads: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(
            lambda m, a, k, o: reads.append((a[0] if a else k["hidden_states"], o[0] if isinstance(o, tuple) else o)),
            with_kwargs=True,
        )
        for block in blocks_of(model)
    ]
    for batch in batches():
        reads.clear()
        with torch.no_grad():
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        for layer, (x, y) in enumerate(reads):
            x, y = (state[batch["attention_mask"].bool()].double() for state in (x, y))
            turns[layer] += (1 - (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))).sum()
        tokens += int(batch["attention_mask"].sum())
    for handle in handles:
        handle.remove()
    pruned = ShortGPT(layers_removed=2)(supernet, batches)
    assert pruned.records["scores"] == pytest.approx((turns / tokens).tolist(), rel=1e-4)
    gone = turns.argsort()[:2].tolist()
    assert pruned.records["removed"] == gone
    assert pruned.architecture is not None
    assert [layer.index for layer in pruned.architecture.layers] == sorted({0, 1, 2, 3} - set(gone))
    if name != "gemma3_text":  # whose layers' kinds are read from a list beside them
        assert torch.allclose(logits(pruned.model), logits(without(model, gone)), atol=1e-6)
    assert is_stock(pruned.model)
    assert torch.equal(logits(saved_again(pruned, tmp_path / "model")), logits(pruned.model))


def test_shortened_llama_drops_the_layer_that_the_loss_misses_least():
    supernet = build("llama")
    model = plain(supernet)
    losses = [mean_token_loss(without(model, [layer]), batches()) for layer in range(4)]
    pruned = ShortenedLlama(layers_removed=1, keep_first=1, keep_last=1)(supernet, batches)
    assert pruned.records["removed"] == [min((1, 2), key=lambda layer: losses[layer])]
    whole = mean_token_loss(model, batches())
    assert pruned.records["scores"] == pytest.approx([loss - whole for loss in losses], abs=1e-5)
    free = ShortenedLlama(layers_removed=2, keep_first=0, keep_last=0)(supernet, batches)
    assert free.records["removed"] == sorted(range(4), key=lambda layer: losses[layer])[:2]


def test_taylor_scores_are_those_of_one_backward_pass_over_all_batches():
    supernet = build("gpt_neox")
    model = plain(supernet)
    total, tokens = torch.zeros(()), 0
    for batch in batches():
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        total = total + F.cross_entropy(output.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
        tokens += int((batch["labels"][:, 1:] != -100).sum())
    (total / tokens).backward()
    expected = [
        sum((m.weight * m.weight.grad).abs().sum().item() for m in block.modules() if isinstance(m, nn.Linear))
        for block in model.gpt_neox.layers
    ]
    frozen = next(supernet.model.parameters()).requires_grad_(False)
    assert taylor_scores(supernet, batches()) == pytest.approx(expected, rel=1e-4)
    assert not frozen.requires_grad
    assert all(parameter.grad is None for parameter in supernet.model.parameters())


def test_max_params_removes_as_few_layers_as_meet_it():
    supernet = build("llama")
    whole = supernet.num_parameters(supernet.largest())
    layer = sum(parameter.numel() for parameter in supernet.blocks[0].parameters())
    for share in (0.95, 0.75, 0.5):
        pruned = ShortGPT(max_params=share)(supernet, batches)
        count, gone = pruned.model.num_parameters(), len(pruned.records["removed"])
        assert count == whole - gone * layer <= share * whole < count + layer
    exact = whole - 2 * layer
    assert ShortGPT(max_params=exact)(supernet, batches).model.num_parameters() == exact


# ---------------------------------------------------------------- sublayers


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "opt"])
def test_unast_s_depth_pruning_drops_the_sublayers_of_the_least_summed_error(name, tmp_path):
    supernet = build(name)
    model = plain(supernet)
    paths = {"attention": supernet.sublayers["attention"], "mlp": supernet.sublayers["mlp"]}
    blocks = list(model.get_submodule(supernet.layers_path).children())
    read: list[torch.Tensor] = []
    head = model.get_output_embeddings().register_forward_pre_hook(lambda m, args: read.append(args[0]))

    def states(gone: set[tuple[int, str]]) -> torch.Tensor:
        """What the head reads where the outputs of some sublayers are zeros."""

        def nothing(module, args, output):
            if isinstance(output, tuple):
                return (torch.zeros_like(output[0]), *output[1:])
            return torch.zeros_like(output)

        handles = [blocks[i].get_submodule(paths[s]).register_forward_hook(nothing) for i, s in gone]
        found = []
        for batch in batches():
            read.clear()
            with torch.no_grad():
                model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
            found.append(read[0][batch["attention_mask"].bool()])
        for handle in handles:
            handle.remove()
        return torch.cat(found).double()

    whole = states(set())
    places = [(i, s) for i in range(4) for s in ("attention", "mlp") if paths[s] is not None]
    errors = {place: float((states({place}) - whole).square().mean() / whole.square().mean()) for place in places}
    pruned = UnastDepth(sublayers_removed=3)(supernet, batches)
    found = {f"{layer}.{sublayer}": error for (layer, sublayer), error in errors.items()}
    assert pruned.records["global_mse"] == pytest.approx(found, rel=1e-4)
    sums = {kept: sum(errors[place] for place in kept) for kept in combinations(places, 3)}
    best = min(sums, key=lambda kept: sums[kept])
    assert set(pruned.records["removed"]) == {f"{layer}.{sublayer}" for layer, sublayer in best}
    removed = states(set(best))
    head.remove()
    reached: list[torch.Tensor] = []
    pruned.model.get_output_embeddings().register_forward_pre_hook(lambda m, args: reached.append(args[0]))
    pruned.model.eval()
    for batch in batches():
        with torch.no_grad():
            pruned.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    mine = [state[batch["attention_mask"].bool()] for state, batch in zip(reached, batches(), strict=True)]
    assert torch.allclose(torch.cat(mine).double(), removed, atol=1e-5)
    assert torch.equal(logits(saved_again(pruned, tmp_path / "model")), logits(pruned.model))


def test_unast_s_depth_pruning_counts_what_goes():
    supernet = build("llama")
    whole = supernet.num_parameters(supernet.largest())
    pruned = UnastDepth(max_params=0.6)(supernet, batches)
    least = max(
        sum(p.numel() for m in (block.self_attn, block.mlp) for p in m.parameters()) + 2 * 48
        for block in supernet.blocks
    )
    assert 0.6 * whole - least < pruned.model.num_parameters() <= 0.6 * whole
    assert f"removed {len(pruned.records['removed'])} of 8 sublayers" in pruned.summary


def test_families_that_mix_kinds_of_attention_lose_feed_forward_networks_alone():
    pruned = UnastDepth(sublayers_removed=2)(build("gemma3_text"), batches)
    assert len(pruned.records["global_mse"]) == 4
    assert all(name.endswith(".mlp") for name in pruned.records["removed"])


# ---------------------------------------------------------------- truncation


@pytest.mark.parametrize("axes", [("hidden", "kv_groups", "ffn", "layers"), ("layers",), ("ffn", "kv_groups")])
def test_truncation_keeps_the_first_units_and_no_fewer_than_it_must(axes):
    supernet = build("llama")
    model, whole = plain(supernet), supernet.num_parameters(supernet.largest())
    share = 0.7
    pruned = Truncation(max_params=share, axes=axes)(supernet, lambda: pytest.fail("no data are needed"))
    small = pruned.architecture
    assert small is not None
    assert pruned.model.num_parameters() <= share * whole
    shape = small.layers[0]
    kept = {"hidden": small.hidden, "kv_groups": shape.kv_groups, "ffn": shape.ffn, "layers": small.num_layers}
    full = {"hidden": 48, "kv_groups": 3, "ffn": 80, "layers": 4}
    assert all(kept[axis] == full[axis] for axis in full if axis not in axes)
    for axis in axes:  # one unit more of any is too much
        if kept[axis] == full[axis]:
            continue
        more = kept | {axis: kept[axis] + {"hidden": 8, "kv_groups": 1, "ffn": 8, "layers": 1}[axis]}
        layers = tuple(
            LayerChoice(i, more["kv_groups"], shape.heads_per_group, shape.head_dim, more["ffn"])
            for i in range(more["layers"])
        )
        assert supernet.num_parameters(Architecture(more["hidden"], layers)) > share * whole
    weight = blocks_of(pruned.model)[0].mlp.up_proj.weight
    assert torch.equal(weight, blocks_of(model)[0].mlp.up_proj.weight[: kept["ffn"], : kept["hidden"]])


def test_truncation_takes_the_sizes_of_another_model_in_the_first_layers(tmp_path):
    supernet = build("llama")
    other = ShortGPT(layers_removed=2)(build("llama"), batches)
    save_pretrained(other.model, tmp_path / "stock")
    narrow = Truncation(max_params=0.5)(build("llama"), batches)
    save_pretrained(narrow.model, tmp_path / "own")
    assert narrow.architecture is not None
    pruned = Truncation(like=str(tmp_path / "stock"))(supernet, batches)
    assert pruned.architecture is not None
    assert [layer.index for layer in pruned.architecture.layers] == [0, 1]
    assert torch.equal(logits(pruned.model), logits(without(plain(supernet), [2, 3])))
    assert Truncation(like=str(tmp_path / "own"))(supernet, batches).architecture == narrow.architecture
    with pytest.raises(ValueError, match=r"baseline.like=.*does not fit into the network"):
        Truncation(like=str(tmp_path / "own")).refuse(Supernet(other.model.eval()))
    with pytest.raises(ValueError, match=r"baseline.like=/none: neither a local directory"):
        Truncation(like="/none").refuse(supernet)


# ---------------------------------------------------------------- methods of other rooms


@pytest.mark.parametrize(
    ("baseline", "method"),
    [
        (WandaBaseline(pattern="2:4"), Wanda(None, "2:4")),
        (WandaBaseline(pattern="4:8", targets=["up_proj"]), Wanda(None, "4:8", ["up_proj"])),
        (SparseGPTBaseline(pattern="2:4"), SparseGPT(None, "2:4")),
        (SparseGPTBaseline(), SparseGPT(0.5)),
    ],
)
def test_sparse_baselines_are_the_methods_of_their_room(baseline, method):
    one, other = build("llama"), build("llama")
    pruned = baseline(one, batches)
    method(other, batches())
    assert all(torch.equal(a, b) for a, b in zip(pruned.model.parameters(), other.model.parameters(), strict=True))
    assert pruned.records["overall"]["sparsity"] == 0.5
    assert f"of its {one.num_parameters(one.largest()):,} parameters" in pruned.summary


def test_magnitude_and_rounding_look_at_no_data():
    def none():
        pytest.fail("no data are needed")

    assert zeros_of_model(MagnitudeBaseline()(build("llama"), none).model).overall.sparsity > 0.3
    RoundToNearestBaseline(group_size=8)(build("llama"), none)


def test_quantised_baselines_are_the_methods_of_their_room(tmp_path):
    one, other = build("llama"), build("llama")
    pruned = GPTQBaseline(bits=3, group_size=8, act_order=True)(one, batches)
    GPTQ(bits=3, group_size=8, act_order=True)(other, batches())
    assert torch.equal(logits(pruned.model), logits(other.model))
    assert torch.allclose(logits(saved_again(pruned, tmp_path / "model")), logits(pruned.model), atol=1e-6)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ShortGPT(max_params=0.5, layers_removed=1), "baseline.max_params=0.5 and baseline.layers_removed=1"),
        (lambda: ShortGPT(layers_removed=0), "baseline.layers_removed=0: allowed is 1 or more"),
        (lambda: ShortGPT(max_params=0), "baseline.max_params=0: allowed is a fraction"),
        (lambda: ShortenedLlama(criterion="magnitude"), "baseline.criterion=magnitude: allowed are perplexity, taylor"),
        (lambda: ShortenedLlama(keep_last=-1), "baseline.keep_last=-1: allowed is 0 or more"),
        (lambda: UnastDepth(sublayers_removed=-1), "baseline.sublayers_removed=-1: allowed is 1 or more"),
        (lambda: Truncation(axes=["heads"]), r"baseline.axes=\[heads\]: allowed are some of hidden"),
        (lambda: Truncation(max_params=0.5, like="x"), "baseline.max_params=0.5 cannot take effect with baseline.like"),
        (lambda: WandaBaseline(0.5, "2:4"), "^baseline.sparsity=0.5 and baseline.pattern=2:4"),
        (lambda: WandaBaseline(pattern="4:2"), "^baseline.pattern=4:2: allowed is N:M.*as baseline.pattern=2:4"),
        (lambda: GPTQBaseline(bits=9), "^baseline.bits=9"),
    ],
)
def test_impossible_settings_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    ("baseline", "says"),
    [
        (ShortGPT(layers_removed=4), "baseline.layers_removed=4: 3 of this network may go; allowed is 1 to 3"),
        (ShortGPT(max_params=0.01), "baseline.max_params=0.01: without all 3 that may go .*set baseline.max_params=0"),
        (ShortGPT(max_params=1e9), "baseline.max_params=1000000000.0: the network has .* so that nothing would go"),
        (ShortenedLlama(), "baseline.keep_first=4 and baseline.keep_last=2 keep all 4 layers"),
        (Truncation(max_params=0.001), "baseline.max_params=0.001: with one unit of hidden"),
        (
            WandaBaseline(pattern="2:5"),
            "^baseline.pattern=2:5 does not divide the width of model.layers.0.*baseline.sp",
        ),
        (WandaBaseline(targets=["qkv"]), r"^baseline.targets=\[qkv\]: qkv is no linear module"),
        (
            GPTQBaseline(),
            "^baseline.group_size=128 does not divide .*set baseline.group_size=16, which divides those of all layers",
        ),
    ],
)
def test_what_the_network_cannot_have_is_refused_before_any_data(baseline, says):
    with pytest.raises(ValueError, match=says):
        baseline.refuse(build("llama"))


def test_a_network_that_is_made_small_already_is_refused_by_what_it_is():
    quantised = Supernet(GPTQBaseline(group_size=8)(build("llama"), batches).model)
    with pytest.raises(ValueError, match="is quantised already, to 4 bits: set another baseline=, or model.path"):
        GPTQBaseline(group_size=8).refuse(quantised)
    with pytest.raises(ValueError, match=r"is quantised, .*model.path to the network before.*or another baseline="):
        WandaBaseline().refuse(quantised)
    with pytest.raises(ValueError, match=r"is quantised, so that its weights"):
        ShortenedLlama(layers_removed=1, keep_first=1, keep_last=1, criterion="taylor").refuse(quantised)
    assert ShortGPT(layers_removed=1)(quantised, batches).model.config.num_hidden_layers == 3
    operators = Supernet(UnastDepth(sublayers_removed=2)(build("llama"), batches).model)
    with pytest.raises(ValueError, match="a network of operators already"):
        UnastDepth(sublayers_removed=1).refuse(operators)
    with pytest.raises(ValueError, match=r"truncate its depth alone, baseline.axes=\[layers\]"):
        Truncation().refuse(operators)
    assert Wanda(0.5)(operators, batches()).overall.sparsity == 0.5


def test_patterns_are_told_from_zeros_anywhere():
    weight = torch.tensor([[1.0, 0, 0, 2, 0, 3, 4, 0], [0, 0, 5, 6, 7, 0, 8, 0]])
    assert has_pattern(weight, 2, 4)
    assert pattern_of([torch.ones(2, 8), weight]) == "2:4"
    assert pattern_of([weight[:, [0, 3, 5, 6, 1, 2, 4, 7]]]) == "4:8"
    assert pattern_of([torch.ones(2, 8), torch.eye(3)]) is None


def test_a_budget_takes_the_least_of_the_pieces():
    budget = Budget.of(60, None, "pieces")
    assert budget.first([3, 1, 2], lambda gone: 100 - 20 * len(gone), 100) == [3, 1]
    assert Budget.of(None, None, "pieces").max_params == 0.75


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "gemma2"])
def test_a_released_network_is_the_model_itself_and_plain(name, tmp_path):
    supernet = build(name)
    expected, weights = logits(supernet.model), {id(parameter) for parameter in supernet.model.parameters()}
    model = supernet.release()
    assert {id(parameter) for parameter in model.parameters()} == weights
    assert not any(isinstance(module, ElasticModule) for module in model.modules())
    assert torch.equal(logits(model), expected)
    save_pretrained(model, tmp_path / "model")
    assert torch.equal(logits(from_pretrained(tmp_path / "model")), expected)
    assert Supernet(model).num_parameters(supernet.largest()) == sum(p.numel() for p in model.parameters())
