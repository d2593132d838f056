"""What checkpoints of the layout ``nemotron-nas`` can hold, which vLLM serves as ``DeciLMForCausalLM``; by its reader
(``vllm/model_executor/models/nemotron_nas.py``).

- Blocks are Llama's, with silu and full attention.
- All layers have the same number Q of query heads (``num_attention_heads``) of the same size; a layer has
  Q / n_heads_in_group KV heads. An operator ``heads-GxHxD`` has fewer query heads, G H. Where G divides Q, the heads
  that are missing are zeros: rows of the query projection, columns of the output projection. The function stays what it
  was, and so does the KV cache, of G heads; the zeros cost weights and multiplications that the network itself does not
  have. Where G does not divide Q, or the heads are narrower than elsewhere, KV heads or channels of zeros would be
  needed too, and nothing of what the operator saves would be left.
- A feed-forward network has any width.
- Attention or the feed-forward network may be left out. The first sublayer that does anything is attention: vLLM's code
  has no residual stream before it.
- No matrix stands in the place of a sublayer (vLLM does not read ``replace_with_linear``), and no packed integers here.
  Sparse weights are stored with their zeros.

``models/decilm.py`` writes such checkpoints, ``operators/decilm.py`` chooses candidates for them.
"""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedConfig

from nas_llm.architecture import LayerChoice
from nas_llm.operator_network import BlockOperators, Linear, Quantized, Sublayer

FAMILIES = ("llama", "mistral", "qwen2")  # whose blocks are Llama's
_HELD_NOWHERE = (Linear, Quantized)


def network_obstacles(config: PreTrainedConfig) -> Iterator[str]:
    """What the layout cannot say of a whole network of one of ``FAMILIES``, whatever its sublayers are."""
    if config.hidden_act != "silu":
        yield f"its activation is {config.hidden_act}, not silu"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        yield "its attention is sliding"
    if config.model_type == "mistral" and config.sliding_window is not None:
        yield f"its attention is sliding (sliding_window={config.sliding_window})"


def block_obstacles(
    block: BlockOperators, sizes: LayerChoice, *, num_heads: int, narrow: bool, attended: bool
) -> Iterator[tuple[Sublayer, str]]:
    """What the layout cannot say of one block: the sublayer, and why.

    Args:
        block: its operators.
        sizes: of the block with them; zeros where there is no attention or no feed-forward network.
        num_heads: query heads of every layer of the network.
        narrow: whether its heads have fewer channels than those of the network.
        attended: whether a block before it has attention.
    """
    if isinstance(block.attention, _HELD_NOWHERE):
        yield "attention", _no_place(block.attention)
    if sizes.kv_groups:
        if num_heads % sizes.kv_groups:
            allowed = ", ".join(str(n) for n in range(1, num_heads + 1) if num_heads % n == 0)
            yield "attention", f"{sizes.kv_groups} KV heads of {num_heads} query heads; allowed are {allowed}"
        if narrow:
            yield "attention", "heads of fewer channels"
    if isinstance(block.mlp, _HELD_NOWHERE):
        yield "mlp", _no_place(block.mlp)
    elif sizes.ffn and not (attended or attends(block, sizes)):
        yield "mlp", "no attention before it"


def attends(block: BlockOperators, sizes: LayerChoice) -> bool:
    """Whether there is a residual stream behind the attention of the block, as vLLM's code needs it."""
    return sizes.kv_groups > 0 or isinstance(block.attention, Linear)


def _no_place(operator: Linear | Quantized) -> str:
    return f"there is no place for {'a matrix' if isinstance(operator, Linear) else 'packed integers'}"
