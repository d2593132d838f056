"""Which operators are candidates for a network that vLLM serves (``DeciLMForCausalLM``, model type nemotron-nas).

Those that its layout can hold (``models/decilm_layout.py``), in every place by itself, beside the teacher's other
sublayers; so in the first layer attention cannot be left out, for its FFN would come first. And of these the ones that
save something there: attention with as many KV groups as the teacher is stored with all of its query heads, and sparse
weights are stored dense.
"""

from __future__ import annotations

from nas_llm.models.decilm_layout import FAMILIES, block_obstacles, network_obstacles
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import BlockOperators, Heads, Operator, Sparse, Sublayer


def refuse_layout(supernet: Supernet) -> None:
    """Raises ValueError where checkpoints of the layout cannot hold this network, whatever its operators are."""
    if supernet.family not in FAMILIES:
        raise ValueError(
            f"pool.layout=decilm: checkpoints of that layout hold {', '.join(FAMILIES)}, this model is of family "
            f"{supernet.family!r}; choose a pool that a stock runtime need not serve, as pool=full"
        )
    if obstacles := list(network_obstacles(supernet.config)):
        raise ValueError(
            f"pool.layout=decilm: checkpoints of that layout cannot hold this model: {'; '.join(obstacles)}; choose a "
            "pool that a stock runtime need not serve, as pool=full"
        )


def decilm_misfit(supernet: Supernet, layer: int, sublayer: Sublayer, operator: Operator) -> str | None:
    """Why the operator is no candidate in this place, of a network that :func:`refuse_layout` lets pass; None where it
    is one."""
    layers = supernet.largest().layers
    full, block = layers[layer], BlockOperators(**{sublayer: operator})
    if isinstance(operator, Sparse):
        return "the DeciLM layout stores sparse weights dense"
    if isinstance(operator, Heads) and operator.kv_groups == full.kv_groups and operator.head_dim == full.head_dim:
        return (
            f"the DeciLM layout has one number of query heads for the whole model, {full.heads}: fewer KV groups alone"
        )
    obstacles = block_obstacles(
        block,
        block.sizes(full),
        num_heads=max(layer.heads for layer in layers),
        narrow=isinstance(operator, Heads) and operator.head_dim != full.head_dim,
        attended=layer > 0,
    )
    return next((f"not in the DeciLM layout: {where}: {why}" for where, why in obstacles), None)
