"""Networks of operators: a Hugging Face model in which modules of its blocks stand replaced (UNAST, paper 3).

The model keeps its class, its embeddings, norms and head; ``config.nas_llm`` says what every sublayer is, so that
:func:`nas_llm.save_pretrained` and :func:`nas_llm.from_pretrained` rebuild it without remote code. The norm of a
sublayer that is left out goes with it. Layers without attention have no cache: the others count their caches on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nas_llm.models.elastic import ElasticModule, make_plain
from nas_llm.models.families import family_of
from nas_llm.models.operator_modules import build_sublayer, refuse_operator, sublayer_of, sublayer_path
from nas_llm.models.origin import operators_of
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import Identity, Operator, OperatorNetwork, Sparse, Sublayer, Teacher

Make = Callable[[int, Sublayer, Operator], nn.Module]
"""(layer, sublayer, operator) -> the module, which the assembled model takes as its own."""


def assemble(supernet: Supernet, network: OperatorNetwork, make: Make | None = None) -> PreTrainedModel:
    """The network as a plain model that shares nothing with the super-network.

    ``make`` gives the module of an operator (a distilled one); None: of the super-network's own first units.
    The teacher's sublayers are copied.

    Raises:
        ValueError: the network has another number of layers, or an operator does not fit.
    """
    _refuse_misfit(supernet, network)
    build = make or (lambda layer, sublayer, operator: build_sublayer(supernet, layer, sublayer, operator))
    with supernet.activate(supernet.largest()) as model:
        memo: dict[int, Any] = {}
        for (layer, sublayer), operator in network.operators.items():
            if isinstance(operator, Teacher):
                continue
            memo[id(sublayer_of(supernet, layer, sublayer))] = build(layer, sublayer, operator)
            if isinstance(operator, Identity):
                for name in supernet.sublayer_norms[sublayer]:
                    norm = getattr(supernet.blocks[layer], name)
                    if norm is not None:
                        memo[id(norm)] = nn.Identity()
        gone = {id(part) for place in memo for part in _parts(supernet, place)}
        for module in model.modules():
            if isinstance(module, ElasticModule) and id(module) not in gone:
                for whole in module._parameters.values():
                    if whole is not None:
                        kept = whole.detach().clone(memory_format=torch.contiguous_format)
                        memo.setdefault(id(whole), nn.Parameter(kept, requires_grad=whole.requires_grad))
        small = copy.deepcopy(model, memo)
    for part in small.modules():
        make_plain(part)
    small.config.nas_llm = supernet.origin(supernet.largest())
    if network != OperatorNetwork.teacher(len(network.blocks)):
        small.config.nas_llm["operators"] = network.to_dict()
    _settle(small, supernet, network)
    return small


@contextmanager
def swapped(supernet: Supernet, modules: Mapping[tuple[int, Sublayer], nn.Module]) -> Iterator[PreTrainedModel]:
    """The whole super-network with these modules in place of its own inside the block, without a copy of anything.

    For scoring and distilling only: no cache is kept right where a layer goes without attention. Depth may be cut by
    ``activate`` inside or around the block, no other axis.
    """
    before: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for (layer, sublayer), module in modules.items():
            parent, _, name = sublayer_path(supernet, sublayer).rpartition(".")
            place = supernet.blocks[layer].get_submodule(parent)
            before.append((place, name, getattr(place, name)))
            setattr(place, name, module)
        yield supernet.model
    finally:
        for place, name, module in reversed(before):
            setattr(place, name, module)


def sparse_weights(model: PreTrainedModel) -> list[nn.Parameter]:
    """Weights of an assembled model whose zeros are what their operator promises: training has to keep them."""
    network, row = operators_of(model), family_of(model.config)
    if network is None:
        return []
    paths = {"attention": row.attention, "mlp": row.mlp}
    blocks = list(model.get_submodule(row.layers).children())
    return [
        parameter
        for (layer, sublayer), operator in network.operators.items()
        if isinstance(operator, Sparse)
        for parameter in blocks[layer].get_submodule(paths[sublayer] or "").parameters()
        if parameter.dim() > 1 and bool((parameter == 0).any())
    ]


def _refuse_misfit(supernet: Supernet, network: OperatorNetwork) -> None:
    layers = supernet.largest().num_layers
    if len(network.blocks) != layers:
        raise ValueError(f"the network of operators has {len(network.blocks)} blocks, the teacher {layers}")
    for (layer, sublayer), operator in network.operators.items():
        if not isinstance(operator, Teacher):
            refuse_operator(supernet, layer, sublayer, operator)


def _parts(supernet: Supernet, place: int) -> list[nn.Module]:
    """Modules inside of the one with that ``id``."""
    for block in supernet.blocks:
        for module in block.modules():
            if id(module) == place:
                return list(module.modules())
    return []


def _settle(small: PreTrainedModel, supernet: Supernet, network: OperatorNetwork) -> None:
    """One configuration for all modules, and cache indices of the layers that have attention, without gaps."""
    position = 0
    blocks = small.get_submodule(supernet.layers_path).children()
    for block, full, operators in zip(blocks, supernet.largest().layers, network.blocks, strict=True):
        attention = block.get_submodule(sublayer_path(supernet, "attention"))
        for module in block.modules():
            if "config" in vars(module):
                vars(module)["config"] = small.config
            if "layer_idx" in vars(module):
                vars(module)["layer_idx"] = position
        choice = operators.sizes(full)
        if choice.kv_groups:
            for name, constant in supernet.attention_constants(choice, small.config).items():
                vars(attention)[name] = constant
            position += 1
