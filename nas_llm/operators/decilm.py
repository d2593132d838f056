"""What the DeciLM layout can say of an operator: the checkpoints of one stock runtime (vLLM, ``DeciLMForCausalLM``,
model type nemotron-nas), whose ``block_configs`` describe every layer of a Llama.

A layer has any number of KV heads (``n_heads_in_group``), any FFN width (``intermediate_size``; with the older
``ffn_mult`` it is rounded up to a multiple of 256), and attention or FFN may be left out (``no_op``). The number of
query heads and the size of a head are one for the whole model. So attention with fewer KV groups is stored with all
query heads: those that it lacks are zeros in the columns of its output projection, shared out evenly over its groups;
the function stays, the KV cache shrinks, the queries' compute does not. In the first layer attention cannot be left
out alone: the FFN's norm there expects the residual stream that attention's norm splits off. Other families, linear,
sparse and quantised sublayers have no place in it.
"""

from __future__ import annotations

from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import Ffn, Heads, Identity, Operator, Sublayer, Teacher

DECILM_FAMILIES = ("llama",)


def decilm_misfit(supernet: Supernet, layer: int, sublayer: Sublayer, operator: Operator) -> str | None:
    """Why the layout cannot hold the operator in this place; None where it can."""
    if supernet.family not in DECILM_FAMILIES:
        return f"the DeciLM layout is that of {', '.join(DECILM_FAMILIES)}, not of {supernet.family}"
    if isinstance(operator, Teacher | Ffn):
        return None
    if isinstance(operator, Identity):
        first = layer == 0 and sublayer == "attention"
        return "in the DeciLM layout the first layer has attention" if first else None
    if not isinstance(operator, Heads):
        return "the DeciLM layout has no such sublayer"
    full = supernet.largest().layers[layer]
    if operator.head_dim != full.head_dim:
        return f"the DeciLM layout has one head size for the whole model, {full.head_dim} channels"
    if operator.kv_groups == full.kv_groups:
        return (
            f"the DeciLM layout has one number of query heads for the whole model, {full.heads}: fewer KV groups alone"
        )
    if full.heads % operator.kv_groups:
        return f"the DeciLM layout shares {full.heads} query heads out evenly, not over {operator.kv_groups} KV groups"
    return None
