"""The table: which axes the weights of a model family carry, and which constants of its modules follow the sizes.

A row names a module by its suffix and gives the layouts of its weight: ``(out, in)`` for a projection, ``(dim,)``
for a norm, ``(ANY, dim)`` for an embedding; ``ANY`` is a dimension that is never cut. A family that deviates (fused
projections, norms across heads, static head counts, embedding scales) deviates in its row alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedConfig

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.models.axes import Axis, Fixed, Layout

Row = tuple[Layout | None, ...]
Constant = Callable[[LayerChoice, PreTrainedConfig], Any]

ANY = None
HIDDEN, FFN = Axis("hidden"), Axis("ffn")
G, H, D = Axis("kv_groups"), Axis("heads_per_group"), Axis("head_dim")
ROTARY = Fixed(2) * Axis("head_dim", 2)  # rotary pairs (i, i + head_dim / 2) are kept or dropped together
HEADS = G * H * D


@dataclass(frozen=True)
class Family:
    """One model family; names of modules are those inside the causal language model."""

    layers: str  # the list of transformer blocks
    shared: Mapping[str, Row]  # modules outside of the blocks
    layer: Mapping[str, Row]  # modules of one block
    attention: str  # the attention module of one block
    constants: Mapping[str, Constant]  # attributes of the attention module that the forward pass reads
    mlp: str | None = "mlp"  # the feed-forward module of one block; None: its projections lie in the block itself
    attention_norms: tuple[str, ...] = ("input_layernorm",)  # norms that serve nothing but that sublayer
    mlp_norms: tuple[str, ...] = ("post_attention_layernorm",)
    ffn_key: str = "intermediate_size"
    grouped: bool = True  # the config knows num_key_value_heads
    head_dim_key: bool = True  # the config can say head_dim beside hidden_size and num_attention_heads
    elastic_head_dim: bool = True
    rotary: str | None = "model.rotary_emb"
    scaled_embedding: str | None = None  # gemma: its output is multiplied by sqrt(hidden)
    hidden_keys: tuple[str, ...] = ("hidden_size",)
    refused: Mapping[str, Any] = field(default_factory=dict)  # config values that change the structure beyond this row

    def shape(self, config: PreTrainedConfig) -> LayerChoice:
        """Sizes of one block of a stock configuration (index 0)."""
        heads = config.num_attention_heads
        groups = (config.num_key_value_heads or heads) if self.grouped else heads
        head_dim = (getattr(config, "head_dim", None) if self.head_dim_key else None) or config.hidden_size // heads
        ffn = getattr(config, self.ffn_key) or 4 * config.hidden_size  # gpt2 leaves n_inner empty
        return LayerChoice(0, groups, heads // groups, head_dim, ffn)

    def largest(self, config: PreTrainedConfig) -> Architecture:
        shape = self.shape(config).shape
        return Architecture(config.hidden_size, tuple(LayerChoice(i, *shape) for i in range(config.num_hidden_layers)))

    def elastic_axes(self, config: PreTrainedConfig) -> frozenset[str]:
        axes = {"hidden", "kv_groups", "heads_per_group", "ffn", "layers"}
        if self.elastic_head_dim and (self.rotary is None or _prefix_of_frequencies_is_a_model(config)):
            axes.add("head_dim")
        return frozenset(axes)

    def depth_overrides(self, config: PreTrainedConfig, architecture: Architecture) -> dict[str, Any]:
        """Keys of the configuration that say which blocks are kept."""
        kept = [layer.index for layer in architecture.layers]
        layer_types = getattr(config, "layer_types", None)
        types = {} if layer_types is None else {"layer_types": [layer_types[index] for index in kept]}
        return {"num_hidden_layers": len(kept), **types}

    def overrides(self, config: PreTrainedConfig, architecture: Architecture) -> dict[str, Any]:
        """Keys of the configuration that describe the sub-network, as far as the stock configuration can say it."""
        keys = self.depth_overrides(config, architecture) | dict.fromkeys(self.hidden_keys, architecture.hidden)
        shape = architecture.layers[0]
        if self.head_dim_key:  # one size for all layers, whatever their other shapes are
            keys["head_dim"] = shape.head_dim
        full = self.shape(config).head_dim
        if self.elastic_head_dim and shape.head_dim != full and self.rotary is not None:
            keys["rope_parameters"] = _with_rope_theta(config.rope_parameters, shape.head_dim / full)
        if not architecture.is_uniform:
            return keys
        keys |= {self.ffn_key: shape.ffn, "num_attention_heads": shape.heads}
        if self.grouped:
            keys["num_key_value_heads"] = shape.kv_groups
        return keys


def _prefix_of_frequencies_is_a_model(config: PreTrainedConfig) -> bool:
    """Whether the first rotary pairs are those of a smaller model with another theta (element-wise scalings only)."""
    parameters = config.rope_parameters or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    return all(entry.get("rope_type", "default") in ("default", "linear", "llama3") for entry in nested)


def _with_rope_theta(parameters: dict[str, Any], fraction: float) -> dict[str, Any]:
    """The theta whose frequencies theta ** (-2 i / head_dim), at a fraction of the size, are the full head's first."""
    if "rope_theta" in parameters:
        return parameters | {"rope_theta": parameters["rope_theta"] ** fraction}
    return {
        name: _with_rope_theta(entry, fraction) if isinstance(entry, dict) else entry
        for name, entry in parameters.items()
    }


def _groups(choice: LayerChoice, config: PreTrainedConfig) -> int:
    return choice.heads_per_group


def _head_dim(choice: LayerChoice, config: PreTrainedConfig) -> int:
    return choice.head_dim


def _scaling(choice: LayerChoice, config: PreTrainedConfig) -> float:
    return choice.head_dim**-0.5


def _kv_heads(choice: LayerChoice, config: PreTrainedConfig) -> int:
    return choice.kv_groups


def _heads(choice: LayerChoice, config: PreTrainedConfig) -> int:
    return choice.heads


def _attention_width(choice: LayerChoice, config: PreTrainedConfig) -> int:
    return choice.heads * choice.head_dim


def _config_with_heads(choice: LayerChoice, config: PreTrainedConfig) -> PreTrainedConfig:
    """phi3 splits its fused projection by the number of heads in the attention's configuration."""
    if config.num_attention_heads == choice.heads:
        return config
    own = copy.copy(config)
    own.num_attention_heads = choice.heads
    return own


def _gated(prefix: str = "mlp.") -> dict[str, Row]:
    return {f"{prefix}gate_proj": (FFN, HIDDEN), f"{prefix}up_proj": (FFN, HIDDEN), f"{prefix}down_proj": (HIDDEN, FFN)}


def _norms(*names: str) -> dict[str, Row]:
    return dict.fromkeys(names, (HIDDEN,))


def _split_attention(out: str = "o_proj", rotary: Layout = ROTARY) -> dict[str, Row]:
    return {
        "self_attn.q_proj": (G * H * rotary, HIDDEN),
        "self_attn.k_proj": (G * rotary, HIDDEN),
        "self_attn.v_proj": (G * D, HIDDEN),
        f"self_attn.{out}": (HIDDEN, HEADS),
    }


_DECODER: dict[str, Row] = {"model.embed_tokens": (ANY, HIDDEN), "model.norm": (HIDDEN,), "lm_head": (ANY, HIDDEN)}
_BLOCK = _split_attention() | _gated() | _norms("input_layernorm", "post_attention_layernorm")
_GEMMA_NORM_NAMES = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_GEMMA_NORMS = _norms(*_GEMMA_NORM_NAMES)
_HEAD_NORMS: dict[str, Row] = {"self_attn.q_norm": (ROTARY,), "self_attn.k_norm": (ROTARY,)}
_SIZES = {"num_key_value_groups": _groups, "head_dim": _head_dim}

_LLAMA = Family("model.layers", _DECODER, _BLOCK, "self_attn", _SIZES | {"scaling": _scaling})


FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": replace(_LLAMA, layer=_BLOCK | _HEAD_NORMS),
    "gemma": replace(_LLAMA, scaled_embedding="model.embed_tokens"),
    # gemma2 and gemma3 scale queries by a constant of the configuration, not by the head size
    "gemma2": replace(
        _LLAMA,
        layer=_BLOCK | _GEMMA_NORMS,
        constants=_SIZES,
        scaled_embedding="model.embed_tokens",
        attention_norms=_GEMMA_NORM_NAMES[:2],
        mlp_norms=_GEMMA_NORM_NAMES[2:],
    ),
    "gemma3_text": replace(
        _LLAMA,
        layer=_BLOCK | _GEMMA_NORMS | _HEAD_NORMS,
        constants=_SIZES,
        scaled_embedding="model.embed_tokens",
        attention_norms=_GEMMA_NORM_NAMES[:2],
        mlp_norms=_GEMMA_NORM_NAMES[2:],
    ),
    # olmo2 normalises queries and keys across all heads of the layer
    "olmo2": replace(
        _LLAMA,
        layer=_split_attention()
        | _gated()
        | _norms("post_attention_layernorm", "post_feedforward_layernorm")
        | {"self_attn.q_norm": (G * H * ROTARY,), "self_attn.k_norm": (G * ROTARY,)},
        attention_norms=("post_attention_layernorm",),
        mlp_norms=("post_feedforward_layernorm",),
    ),
    "stablelm": replace(
        _LLAMA,
        layer=_split_attention(rotary=D) | _gated() | _norms("input_layernorm", "post_attention_layernorm"),
        constants={"num_heads": _heads, "num_key_value_heads": _kv_heads, "num_key_value_groups": _groups},
        attention_norms=(),  # with use_parallel_residual both sublayers read the one norm
        head_dim_key=False,
        elastic_head_dim=False,
        refused={"qk_layernorm": True},
    ),
    "phi": replace(
        _LLAMA,
        shared={"model.embed_tokens": (ANY, HIDDEN), "model.final_layernorm": (HIDDEN,), "lm_head": (ANY, HIDDEN)},
        layer=_split_attention("dense", D)
        | {"mlp.fc1": (FFN, HIDDEN), "mlp.fc2": (HIDDEN, FFN)}
        | {"self_attn.q_layernorm": (D,), "self_attn.k_layernorm": (D,)}
        | _norms("input_layernorm"),
        constants={"num_key_value_groups": _groups},
        attention_norms=(),  # both sublayers read the one norm
        mlp_norms=(),
        elastic_head_dim=False,
    ),
    "phi3": replace(
        _LLAMA,
        layer={
            "self_attn.qkv_proj": (G * H * D + G * D + G * D, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HEADS),
            "mlp.gate_up_proj": (FFN + FFN, HIDDEN),
            "mlp.down_proj": (HIDDEN, FFN),
        }
        | _norms("input_layernorm", "post_attention_layernorm"),
        constants={"num_key_value_groups": _groups, "num_key_value_heads": _kv_heads, "config": _config_with_heads},
        elastic_head_dim=False,
    ),
    "gpt_neox": Family(
        layers="gpt_neox.layers",
        shared={
            "gpt_neox.embed_in": (ANY, HIDDEN),
            "gpt_neox.final_layer_norm": (HIDDEN,),
            "lm_head": (ANY, HIDDEN),
            "embed_out": (ANY, HIDDEN),
        },
        layer={
            # every head holds its own query, key and value behind each other
            "attention.query_key_value": (G * Fixed(3) * D, HIDDEN),
            "attention.dense": (HIDDEN, G * D),
            "mlp.dense_h_to_4h": (FFN, HIDDEN),
            "mlp.dense_4h_to_h": (HIDDEN, FFN),
        }
        | _norms("input_layernorm", "post_attention_layernorm"),
        attention="attention",
        constants={},
        grouped=False,
        head_dim_key=False,
        elastic_head_dim=False,
        rotary="gpt_neox.rotary_emb",
    ),
    "gpt2": Family(
        layers="transformer.h",
        shared={
            "transformer.wte": (ANY, HIDDEN),
            "transformer.wpe": (ANY, HIDDEN),
            "transformer.ln_f": (HIDDEN,),
            "lm_head": (ANY, HIDDEN),
        },
        layer={
            "attn.c_attn": (G * D + G * D + G * D, HIDDEN),
            "attn.c_proj": (HIDDEN, G * D),
            "mlp.c_fc": (FFN, HIDDEN),
            "mlp.c_proj": (HIDDEN, FFN),
        }
        | _norms("ln_1", "ln_2"),
        attention="attn",
        constants={"num_heads": _heads, "head_dim": _head_dim, "split_size": _attention_width, "scaling": _scaling},
        attention_norms=("ln_1",),
        mlp_norms=("ln_2",),
        ffn_key="n_inner",
        grouped=False,
        head_dim_key=False,
        rotary=None,
        refused={"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "add_cross_attention": True},
    ),
    "opt": Family(
        layers="model.decoder.layers",
        shared={
            "model.decoder.embed_tokens": (ANY, HIDDEN),
            "model.decoder.embed_positions": (ANY, HIDDEN),
            "model.decoder.final_layer_norm": (HIDDEN,),
            "lm_head": (ANY, HIDDEN),
        },
        layer=_split_attention("out_proj", D)
        | {"fc1": (FFN, HIDDEN), "fc2": (HIDDEN, FFN)}
        | _norms("self_attn_layer_norm", "final_layer_norm"),
        attention="self_attn",
        constants={"num_heads": _heads, "head_dim": _head_dim, "scaling": _scaling},
        mlp=None,
        attention_norms=(),  # opt-350m has them behind the residual addition
        mlp_norms=(),
        ffn_key="ffn_dim",
        grouped=False,
        head_dim_key=False,
        rotary=None,
        hidden_keys=("hidden_size", "word_embed_proj_dim"),
        refused={"layer_norm_elementwise_affine": False},
    ),
}

# opt-350m projects a narrower embedding into the residual stream
_OPT_PROJECTED = replace(
    FAMILIES["opt"],
    shared={
        "model.decoder.embed_tokens": (ANY, ANY),
        "model.decoder.project_in": (HIDDEN, ANY),
        "model.decoder.project_out": (ANY, HIDDEN),
        "model.decoder.embed_positions": (ANY, HIDDEN),
        "model.decoder.final_layer_norm": (HIDDEN,),
        "lm_head": (ANY, ANY),
    },
    hidden_keys=("hidden_size",),
)


def known_family(model_type: str) -> Family:
    """The row of a model type.

    Raises:
        ValueError: there is none.
    """
    family = FAMILIES.get(model_type)
    if family is None:
        raise ValueError(
            f"model family {model_type!r} is not known; known are {', '.join(sorted(FAMILIES))} "
            "(docs/architecture.md says how to add one: a row in nas_llm/models/families.py)"
        )
    return family


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a configuration.

    Raises:
        ValueError: the family, or a structural option of it, is not in the table.
    """
    family = known_family(config.model_type)
    for key, value in family.refused.items():
        if getattr(config, key) == value:
            raise ValueError(
                f"{config.model_type} with {key}={value} is not supported: its structure is not in the table"
            )
    if config.model_type == "opt":
        origin = getattr(config, "nas_llm", None)  # a cut model keeps its projections, whatever its width is now
        whole = config.to_dict() if origin is None else origin["base_config"]
        if whole["word_embed_proj_dim"] != whole["hidden_size"]:
            return _OPT_PROJECTED
    return family
