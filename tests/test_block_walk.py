"""The walk over blocks: its statistics are those of plain hooks on the whole, successively changed, network."""

from __future__ import annotations

import copy
from itertools import accumulate

import pytest
import torch
from test_families import FAMILIES, batch, build, random_architectures
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from nas_llm.models import block_walk
from nas_llm.models.block_walk import by_statistic, projections, walk
from nas_llm.models.hidden_states import HiddenStates
from nas_llm.models.input_statistics import ChannelNorms, Hessian
from nas_llm.models.supernet import Supernet
from nas_llm.sparsity.sparsegpt import SparseGPT


def calibration() -> list[dict[str, torch.Tensor]]:
    """Padding on the left, on the right, and a batch of another size without any."""
    left = batch()
    ids = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    found = [left, {"input_ids": ids, "attention_mask": mask}]
    found.append({"input_ids": ids[:1, :7], "attention_mask": torch.ones(1, 7, dtype=torch.long)})
    return [{**one, "labels": one["input_ids"]} for one in found]


def change(weight: torch.Tensor) -> None:
    """weight: (out, in); what a method might do to it."""
    weight[:, ::3] = 0
    weight.mul_(1.1)


def plain_hessians(model: nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    """2 X X^T in float64 of the named modules, from forward hooks on whole passes."""
    found: dict[str, torch.Tensor] = {}
    handles = []
    for name in names:

        def hook(module, args, output, name=name):
            rows = args[0].double().reshape(-1, args[0].shape[-1])[mask.bool().flatten()]
            found[name] = found.get(name, 0) + 2 * rows.T @ rows

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    with torch.no_grad():
        for one in calibration():
            mask = one["attention_mask"]
            model(input_ids=one["input_ids"], attention_mask=mask, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_statistics_are_those_of_hooks_on_the_whole_changed_network(name):
    supernet = build(name)
    model = copy.deepcopy(supernet.model)  # the oracle, changed by hand
    layers = supernet.layers_path
    for block in walk(supernet, iter(calibration())):
        names = [projection.name for projection in block.projections]
        inside = model.get_submodule(f"{layers}.{block.index}").named_modules()
        linear = [n for n, module in inside if isinstance(module, nn.Linear | Conv1D)]
        assert names == [f"{layers}.{block.index}.{n}" for n in linear]
        expected = plain_hessians(model, names)
        hessians, norms = block.collect(Hessian), block.collect(ChannelNorms)
        assert hessians.keys() == norms.keys() == expected.keys()
        for key, value in expected.items():
            scale = value.abs().max()
            assert (hessians[key].matrix - value).abs().max() <= 1e-5 * scale
            assert (norms[key].norms - (value.diagonal() / 2).sqrt()).abs().max() <= 1e-5 * scale.sqrt()
            assert (
                hessians[key].tokens == norms[key].tokens == sum(int(b["attention_mask"].sum()) for b in calibration())
            )
        for projection in block.projections:
            change(projection.weight)
            other = model.get_submodule(projection.name)
            with torch.no_grad():
                change(other.weight.T if isinstance(other, Conv1D) else other.weight)
    assert block.index == supernet.largest().num_layers - 1
    for key, value in model.state_dict().items():
        assert torch.equal(supernet.model.state_dict()[key], value)


def test_projections_that_read_the_same_share_a_statistic():
    block = next(walk(build("llama"), calibration()))
    found = {key.rpartition(".")[2]: value for key, value in block.collect(Hessian).items()}
    assert found["q_proj"] is found["k_proj"] is found["v_proj"]
    assert found["gate_proj"] is found["up_proj"]
    assert len({id(value) for value in found.values()}) == 4
    named = block.collect(Hessian, [p.name for p in block.projections if p.name.endswith("up_proj")])
    assert [key.rpartition(".")[2] for key in named] == ["up_proj"]
    assert torch.equal(named["model.layers.0.mlp.up_proj"].matrix, found["up_proj"].matrix)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Broken(Hessian):
    def add(self, inputs: torch.Tensor) -> None:
        raise RuntimeError("mine")


def test_nothing_is_left_on_the_model_also_by_an_error():
    supernet = build("gemma3_text")
    supernet.model.train()
    before = copy.deepcopy(supernet.config.to_dict())
    for block in walk(supernet, calibration()):
        block.collect(Hessian)
        assert hooks(supernet.model) == 0
        with pytest.raises(RuntimeError, match="mine"):
            block.collect(Broken)
        assert hooks(supernet.model) == 0
        assert supernet.model.training
        assert supernet.config.to_dict() == before
        if block.index == 1:
            break


def test_inside_an_active_sub_network_the_walk_is_of_the_whole_network():
    supernet = build("llama")
    whole = [block.collect(ChannelNorms) for block in walk(supernet, calibration())]
    with supernet.activate(random_architectures(supernet, 1)[0]):
        inside = [block.collect(ChannelNorms) for block in walk(supernet, calibration())]
    for a, b in zip(whole, inside, strict=True):
        assert all(torch.equal(value.norms, b[key].norms) for key, value in a.items())


def test_statistics_are_float32_in_a_bfloat16_network():
    supernet = build("llama").to(torch.bfloat16)
    for block in walk(supernet, calibration()):
        for hessian in block.collect(Hessian).values():
            assert hessian.matrix.dtype == torch.float32
            assert torch.equal(hessian.matrix, hessian.matrix.T)


def test_a_network_that_overflows_is_refused_by_the_projection():
    supernet = build("llama")
    supernet.model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("inf")
    blocks = walk(supernet, calibration())
    next(blocks).collect(Hessian)
    with pytest.raises(ValueError, match=r"what model\.layers\.1\.mlp\.down_proj reads .* set model\.path"):
        next(blocks).collect(Hessian)
    blocks = walk(supernet.to(torch.bfloat16), calibration())
    first = next(blocks)
    with pytest.raises(ValueError, match=r"down_proj reads .* set model\.dtype=float32"):
        next(blocks).collect(ChannelNorms)
    with pytest.raises(RuntimeError, match="block 0 is left behind: the walk is at block 1"):
        first.collect(ChannelNorms)


def test_no_batch_is_refused():
    with pytest.raises(ValueError, match=r"no calibration batch: set data\.calibration_size above 0"):
        next(walk(build("llama"), []))


def test_the_weight_of_a_projection_is_out_by_in_and_writes_the_parameter():
    for family in ("gpt2", "llama"):
        for of_block in projections(build(family)):
            for projection in of_block:
                projection.weight.zero_()
                assert not projection.parameter.any()
                assert projection.weight.shape[1] == _width(projection.module)


def _width(module: nn.Module) -> int:
    return module.nx if isinstance(module, Conv1D) else module.in_features  # type: ignore[return-value]


def test_states_in_a_file_give_the_same_statistics(monkeypatch):
    made = []

    class Recorded(HiddenStates):
        def __init__(self, sizes, *, in_memory):
            made.append(in_memory)
            super().__init__(sizes, in_memory=in_memory if len(made) == 1 else False)

    monkeypatch.setattr(block_walk, "HiddenStates", Recorded)
    for block in walk(build("llama"), calibration()):
        held = block.collect(Hessian)
    *_, last = walk(build("llama"), calibration())  # which has ended
    written = last.collect(Hessian)
    assert made == [True, True]  # few tokens; the second walk writes them all the same
    assert all(torch.equal(value.matrix, written[key].matrix) for key, value in held.items())


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_a_statistic_is_handed_out_once_with_all_that_share_it(family):
    block = next(walk(build(family), calibration()))
    statistics = block.collect(Hessian)
    expected = {key: id(value) for key, value in statistics.items()}
    found = {}
    for hessian, sharing in by_statistic(block.projections, statistics):
        assert all(projection.name not in statistics for projection in sharing)
        found |= {projection.name: id(hessian) for projection in sharing}
    assert found == expected
    assert statistics == {}


def test_what_is_allocated_above_the_model_is_less_than_two_blocks():
    """Of torch's own allocations: SparseGPT holds a block's Hessians, the network's own activations come on top."""
    sizes = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2}
    supernet = Supernet(LlamaForCausalLM(LlamaConfig(vocab_size=128, num_attention_heads=4, **sizes)))
    block = 4 * sum(p.weight.numel() for p in projections(supernet)[0])
    ids = torch.randint(128, (1, 32), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}] * 56  # states: 0.88 MiB, a block: 0.77
    with torch.autograd.profiler.profile(profile_memory=True) as recorded:
        SparseGPT(0.5)(supernet, batches)
    events = (e for e in recorded.kineto_results.events() if e.name() == "[memory]")
    held = accumulate(change for _, change in sorted((e.start_ns(), e.nbytes()) for e in events))
    assert 0.5 * block < max(held) < 2 * block
