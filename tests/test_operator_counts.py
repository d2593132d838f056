"""Parameters, bytes, multiply-accumulates and caches of networks of operators against what a forward pass does."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from test_families import FAMILIES, build
from test_operator_assembly import assembled, random_networks
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from nas_llm.architecture import Architecture
from nas_llm.models.saving import save_pretrained
from nas_llm.models.supernet import Supernet

BATCH, LENGTH = 2, 10


def networks(name: str) -> list[tuple[torch.nn.Module, Supernet]]:
    """Assembled models beside super-networks around copies of them."""
    supernet = build(name)
    models = [assembled(supernet, network) for network in random_networks(supernet, 3, seed=7)]
    return [(model, Supernet(copy.deepcopy(model))) for model in models]


def tokens() -> torch.Tensor:
    return torch.randint(3, 96, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FAMILIES)
def test_macs_are_those_that_torch_counts(name):
    for model, supernet in networks(name):
        for module in model.modules():  # phi3's layers have configurations of their own
            if "config" in vars(module):
                module.config._attn_implementation = "eager"  # the whole square, as it is counted
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=tokens(), use_cache=False)
        counted = counter.get_total_flops() // 2
        assert supernet.macs(supernet.largest(), batch_size=BATCH, sequence_length=LENGTH) == counted


@pytest.mark.parametrize("name", FAMILIES)
def test_caches_are_those_that_a_forward_pass_fills(name):
    for model, supernet in networks(name):
        cache = DynamicCache()
        with torch.no_grad():
            model(input_ids=tokens(), past_key_values=cache, use_cache=True)
        filled = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values) if tensor is not None]
        counted = supernet.kv_cache_bytes(supernet.largest(), batch_size=BATCH, sequence_length=LENGTH)
        assert counted == sum(tensor.nbytes for tensor in filled)


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_and_bytes_are_those_of_the_file_and_of_every_depth(name, tmp_path):
    for number, (model, supernet) in enumerate(networks(name)):
        full = supernet.largest()
        for kept in (full, Architecture(full.hidden, full.layers[1:3])):
            small = model if kept is full else supernet.extract(kept)
            folder = tmp_path / f"{number}-{kept.num_layers}"
            save_pretrained(small, folder)
            stored = {k: w for k, w in load_file(folder / "model.safetensors").items() if w.is_floating_point()}
            buffers = dict(small.named_buffers())
            weights = [weight for key, weight in stored.items() if key not in buffers]
            assert supernet.num_parameters(kept) == sum(weight.numel() for weight in weights)
            assert supernet.weight_bytes(kept) == sum(weight.nbytes for weight in weights)
