"""Which architectures fit into a network: what its family can slice, and what operators, a rotated residual stream and
quantised weights keep whole.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from nas_llm.architecture import Architecture
from nas_llm.models.axes import sizes_of
from nas_llm.models.network_parts import NetworkParts, name_of
from nas_llm.models.quantized_linear import QuantizedLinear


def refuse_rotated(architecture: Architecture, full: Architecture) -> None:
    """Raises ValueError where a network whose residual stream is rotated by sublayer would not be whole."""
    if architecture.without_ranks != full.without_ranks:
        raise ValueError(
            f"the architecture ({architecture.summary()}) is a part of a network whose residual stream is rotated "
            f"by sublayer (SliceGPT), which is kept whole ({full.summary()}): train it with search=none, or search "
            "the network that it was made from"
        )


def refuse_cut_operators(architecture: Architecture, full: Architecture) -> None:
    """Raises ValueError where more than the depth of a network of operators would be cut."""
    if architecture.hidden != full.hidden or any(c.shape != full.layers[c.index].shape for c in architecture.layers):
        raise ValueError(
            f"the architecture ({architecture.summary()}) cuts a network of operators, whose sublayers are whole "
            f"({full.summary()}): search its depth alone, search_space=depth_only, or the network it was made from"
        )


def refuse_head_dims(architecture: Architecture, full: Architecture, elastic_axes: frozenset[str], family: str) -> None:
    """Raises ValueError where heads would have a size that the family cannot slice them to."""
    head_dims = {layer.head_dim for layer in architecture.layers}
    if head_dims == {full.layers[0].head_dim}:
        return
    if "head_dim" not in elastic_axes:
        raise ValueError(f"head_dim={sorted(head_dims)}: family {family!r} cannot slice it ({full.layers[0].head_dim})")
    if len(head_dims) > 1 or any(size % 2 for size in head_dims):
        raise ValueError(
            f"head_dim={sorted(head_dims)}: allowed is one even size for all layers (one rotary embedding)"
        )


def refuse_cut_weights(
    architecture: Architecture, model: PreTrainedModel, parts: NetworkParts, modules: Iterable[nn.Module] | None = None
) -> None:
    """Refuses an architecture that would cut a quantised weight: its groups and packed codes are whole.

    ``modules`` are those that are to be quantised; None: those that are.

    Raises:
        ValueError: naming the weight and the axes that are cut.
    """
    named = None if modules is None else set(modules)
    for choice in (None, *architecture.layers):
        for module in parts.shared if choice is None else parts.in_layer[choice.index]:
            if module not in named if named is not None else not isinstance(module, QuantizedLinear):
                continue
            full = module.elastic_full
            sizes = {"hidden": architecture.hidden} if choice is None else sizes_of(architecture.hidden, choice)
            layouts = module.elastic_layouts["weight"]
            if any(dimension.size(full) != dimension.size(sizes) for dimension in layouts):
                cut = ", ".join(f"{axis} {size} of {full[axis]}" for axis, size in sizes.items() if size != full[axis])
                raise ValueError(
                    f"{name_of(model, module)} is quantised, so that no sub-network may cut it; this architecture "
                    f"has {cut}: search depth (and ranks of adapters) alone, search_space=depth_only, or "
                    "quantization=none"
                )
