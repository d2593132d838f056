"""Where a model comes from, as its configuration's ``nas_llm`` says it: the stock configuration that the weights first
came from, the sub-network as a choice of its units, and operators where they took the places of sublayers.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.models.families import family_of
from nas_llm.operator_network import OperatorNetwork


def origin_of(
    config: PreTrainedConfig, architecture: Architecture, operators: OperatorNetwork | None, *, is_rotated: bool
) -> dict[str, Any]:
    """The origin of a sub-network of a network of this configuration; of a network of operators the architecture before
    they took their places, and the operators."""
    before = getattr(config, "nas_llm", None)
    if before is None:
        return {"base_config": config.to_dict(), "architecture": architecture.without_ranks.to_dict()}
    if is_rotated:
        return dict(before)
    blocks = Architecture.from_dict(before["architecture"]).layers
    if operators is not None:
        kept = [layer.index for layer in architecture.layers]
        return {
            "base_config": before["base_config"],
            "architecture": Architecture(architecture.hidden, tuple(blocks[i] for i in kept)).to_dict(),
            "operators": OperatorNetwork(tuple(operators.blocks[i] for i in kept)).to_dict(),
        }
    layers = tuple(LayerChoice(blocks[layer.index].index, *layer.shape) for layer in architecture.layers)
    return {
        "base_config": before["base_config"],
        "architecture": Architecture(architecture.hidden, layers).to_dict(),
    }


def largest_of(model: PreTrainedModel) -> Architecture:
    """The whole of a model: of an extracted one what it was cut to, of any other what its configuration says."""
    origin = getattr(model.config, "nas_llm", None)
    if origin is None:
        return family_of(model.config).largest(model.config)
    cut = Architecture.from_dict(origin["architecture"])
    layers = tuple(LayerChoice(i, *layer.shape) for i, layer in enumerate(cut.layers))
    operators = operators_of(model)
    if operators is not None:
        layers = tuple(block.sizes(layer) for block, layer in zip(operators.blocks, layers, strict=True))
    return Architecture(cut.hidden, layers)


def operators_of(model: PreTrainedModel) -> OperatorNetwork | None:
    """The operators of an assembled model (``models/operator_assembly.py``); None where it has none."""
    origin = getattr(model.config, "nas_llm", None) or {}
    return OperatorNetwork.from_dict(origin["operators"]) if "operators" in origin else None
