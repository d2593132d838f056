"""Activation: for the time of a block of code, a network runs as the small model of an architecture would.

Set, and put back, are the units of every axis that the modules see, the constants that follow the sizes (head counts,
rotary frequencies, embedding scale), the kept blocks with contiguous cache indices, and the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nas_llm.architecture import Architecture
from nas_llm.models.attached import Attached
from nas_llm.models.axes import rank_sizes, sizes_of
from nas_llm.models.families import Family
from nas_llm.models.network_parts import NetworkParts

_ABSENT = object()
Undo = list[Callable[[], None]]


@contextmanager
def activated(
    model: PreTrainedModel,
    parts: NetworkParts,
    architecture: Architecture,
    full: Architecture,
    *,
    attached: Sequence[Attached] = (),
    has_operators: bool = False,
) -> Iterator[PreTrainedModel]:
    """``model`` as the sub-network ``architecture``, which fits into ``full``; nests, and restores on errors.

    ``attached`` modules follow. Of a network of operators, whose sublayers are whole, only the depth is set.
    """
    undo: Undo = []
    try:
        _set_sizes(model, parts, architecture, full, has_operators, undo)
        _set_attached(attached, architecture, full, undo)
        _set_blocks(model, parts, architecture, undo)
        if not has_operators:
            _set_rotary(model, parts.row, architecture.layers[0].head_dim, full.layers[0].head_dim, undo)
        _set_embedding_scale(model, parts.row, architecture.hidden, undo)
        yield model
    finally:
        for restore in reversed(undo):
            restore()


def _set_sizes(
    model: PreTrainedModel,
    parts: NetworkParts,
    architecture: Architecture,
    full: Architecture,
    has_operators: bool,
    undo: Undo,
) -> None:
    """The configuration, and what the modules of the network see: sizes, constants of attention, cache indices."""
    small = architecture.hidden != full.hidden
    outside = {"hidden": architecture.hidden} if small else None
    for module in parts.shared:
        _set(vars(module), "elastic_active", outside, undo)
    overrides = parts.row.depth_overrides if has_operators else parts.row.overrides
    for key, value in overrides(parts.config, architecture).items():
        _set_attribute(model.config, key, value, undo)
    position = 0  # of the layer's cache
    for choice in architecture.layers:
        whole = not small and choice.shape == full.layers[choice.index].shape
        sizes = None if whole else sizes_of(architecture.hidden, choice)
        for module in parts.in_layer[choice.index]:
            _set(vars(module), "elastic_active", sizes, undo)
        if not has_operators:
            attention = vars(parts.attention[choice.index])
            for name, value in parts.attention_constants(choice, model.config).items():
                _set(attention, name, value, undo)
        for indexed in parts.indexed[choice.index]:
            _set(vars(indexed), "layer_idx", position, undo)
        position += 1 if choice.kv_groups else 0


def _set_attached(attached: Sequence[Attached], architecture: Architecture, full: Architecture, undo: Undo) -> None:
    if not attached:
        return
    outside = {"hidden": architecture.hidden, **rank_sizes(full.ranks), **rank_sizes(architecture.ranks)}
    inside = {
        choice.index: rank_sizes(full.layers[choice.index].ranks) | sizes_of(architecture.hidden, choice)
        for choice in architecture.layers
    }
    for one in attached:  # those of dropped blocks are not run
        active = outside if one.layer is None else inside.get(one.layer)
        _set(vars(one.module), "elastic_active", active, undo)


def _set_blocks(model: PreTrainedModel, parts: NetworkParts, architecture: Architecture, undo: Undo) -> None:
    parent_name, _, name = parts.row.layers.rpartition(".")
    kept = nn.ModuleList(parts.blocks[layer.index] for layer in architecture.layers)
    kept.training = model.training
    _set(model.get_submodule(parent_name)._modules, name, kept, undo)


def _set_rotary(model: PreTrainedModel, row: Family, head_dim: int, full: int, undo: Undo) -> None:
    """The first rotary frequencies of a head of size ``full``."""
    if row.rotary is None or head_dim == full:
        return
    rotary = model.get_submodule(row.rotary)
    for name, buffer in list(rotary._buffers.items()):
        if name.endswith("inv_freq") and buffer is not None:
            _set(rotary._buffers, name, buffer[: head_dim // 2], undo)


def _set_embedding_scale(model: PreTrainedModel, row: Family, hidden: int, undo: Undo) -> None:
    if row.scaled_embedding is None:
        return
    embedding = model.get_submodule(row.scaled_embedding)
    scale, before = hidden**0.5, embedding._buffers["embed_scale"]
    assert before is not None
    _set(vars(embedding), "scalar_embed_scale", scale, undo)
    _set(embedding._buffers, "embed_scale", torch.full_like(before, scale), undo)


def _set(target: dict[str, Any], key: str, value: Any, undo: Undo) -> None:
    before = target.get(key, _ABSENT)
    if before is value:
        return
    undo.append(lambda: target.__setitem__(key, before) if before is not _ABSENT else target.__delitem__(key))
    target[key] = value


def _set_attribute(target: Any, key: str, value: Any, undo: Undo) -> None:
    """Through ``setattr``: a configuration knows some keys under other names."""
    before = getattr(target, key, _ABSENT)
    if before == value:
        return
    undo.append(lambda: setattr(target, key, before) if before is not _ABSENT else delattr(target, key))
    setattr(target, key, value)
