"""Checkpoints in the layout of ``nemotron-nas``, which vLLM serves as ``DeciLMForCausalLM``: Llama's blocks, each with
its own number of KV heads and feed-forward width, or without attention or feed-forward network.

``config.json`` holds ``block_configs``, one for each block, as NVIDIA's Llama-3.3-Nemotron-Super-49B has them::

    {"attention": {"no_op": false, "n_heads_in_group": 2, ...}, "ffn": {"no_op": false, "ffn_mult": 2.625, ...}}

What the layout can say is in ``models/decilm_layout.py``. Its one number of query heads is the largest that a layer
has; zeros are written for those that a layer lacks, and :class:`Decilm` counts them. A width of the feed-forward
network is ``ffn_mult``, from which readers make int(2 ffn_mult hidden / 3), rounded up to a multiple of 256; so
multiples of 256 alone are written so. Another width is ``intermediate_size``, which vLLM reads where there is no
``ffn_mult``, and other readers (TensorRT-LLM, SGLang, llama.cpp) do not.

vLLM reads blocks by attribute, which takes a configuration class; a small one lies beside the weights
(``configuration_decilm.py``), so that serving needs ``--trust-remote-code``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nas_llm.architecture import LayerChoice
from nas_llm.models.decilm_layout import FAMILIES, attends, block_obstacles, network_obstacles
from nas_llm.models.families import family_of
from nas_llm.models.model_directory import WEIGHTS
from nas_llm.models.operator_modules import NarrowAttention
from nas_llm.models.origin import largest_of, operators_of
from nas_llm.models.quantized_linear import quantized_modules
from nas_llm.models.rotated_stream import is_rotated
from nas_llm.models.saving import weights_once, write_directory
from nas_llm.operator_network import BlockOperators

MODEL_TYPE, ARCHITECTURE = "nemotron-nas", "DeciLMForCausalLM"
CONFIG_MODULE = "configuration_decilm.py"
_MULTIPLE = 256  # of the widths that ffn_mult can say
_COPIED = (
    "hidden_size",
    "vocab_size",
    "hidden_act",
    "rms_norm_eps",
    "max_position_embeddings",
    "initializer_range",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_CONFIG_SOURCE = '''"""The configuration of this checkpoint: its blocks are read by attribute."""

from types import SimpleNamespace

from transformers import PretrainedConfig


class DeciLMConfig(PretrainedConfig):
    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), rope_parameters=None, rope_scaling=None, **kwargs):
        super().__init__(**kwargs)
        self.rope_parameters = rope_parameters
        if not hasattr(type(self), "rope_scaling"):  # transformers 5 has it as another name of rope_parameters
            self.rope_scaling = rope_scaling
        self.block_configs = [
            SimpleNamespace(attention=SimpleNamespace(**block["attention"]), ffn=SimpleNamespace(**block["ffn"]))
            for block in block_configs
        ]

    def to_dict(self):
        blocks = [{"attention": vars(block.attention), "ffn": vars(block.ffn)} for block in self.block_configs]
        return super().to_dict() | {"block_configs": blocks}
'''


@dataclass(frozen=True)
class Decilm:
    """A network in that layout. ``padded``: query heads of its own by the index of a layer that has fewer than
    ``num_heads``; ``zeros``: weights that are written for the others. ``odd_widths``: layers whose feed-forward width
    vLLM alone reads."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    num_heads: int
    padded: dict[int, int]
    zeros: int
    odd_widths: tuple[int, ...]

    @property
    def summary(self) -> str:
        """What a user should know of it."""
        said = []
        if self.padded:
            share = self.zeros / sum(weight.numel() for weight in self.weights.values())
            fewer = ", ".join(f"{heads} in layer {index}" for index, heads in self.padded.items())
            said.append(
                f"The layout has {self.num_heads} query heads in every layer with attention; those that a layer lacks "
                f"({fewer} are its own) are written as zeros, {self.zeros:,} weights ({share:.1%}), which are stored "
                "and multiplied; the key/value cache is as small as the network's."
            )
        if self.odd_widths:
            layers = ", ".join(map(str, self.odd_widths))
            said.append(
                f"FFN widths of layers {layers} are no multiples of {_MULTIPLE}: they are written as "
                "intermediate_size, which vLLM reads and other runtimes may not."
            )
        return " ".join(said)


def decilm_of(model: PreTrainedModel) -> Decilm:
    """The model in that layout; its weights are shared where they are as they were.

    Raises:
        ValueError: the family, or a layer of the network, has no place in it; all such layers are named.
    """
    config, full = model.config, largest_of(model)
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"export.format=decilm: its blocks are Llama's, a {config.model_type} has others; allowed are "
            f"{', '.join(FAMILIES)}; set export.format=hf"
        )
    num_heads = max(layer.heads for layer in full.layers)
    head_dim = max(layer.head_dim for layer in full.layers)
    obstacles = list(_obstacles(model, full.layers, num_heads, head_dim))
    if obstacles:
        raise ValueError(
            f"export.format=decilm cannot say what this network is: {'; '.join(obstacles)}. Set export.format=hf "
            "(nas_llm.from_pretrained loads it), or search a pool of what this layout has, pool=deployable"
        )
    blocks = [_block_config(layer, num_heads, config.hidden_size) for layer in full.layers]
    weights = weights_once(model)
    before = sum(weight.numel() for weight in weights.values())
    for index, layer in enumerate(full.layers):
        if layer.kv_groups and layer.heads < num_heads:
            prefix = f"{family_of(config).layers}.{index}.self_attn."
            shape = (layer.kv_groups, layer.heads_per_group, layer.head_dim)
            for name in ("q_proj.weight", "q_proj.bias", "o_proj.weight"):
                if prefix + name in weights:
                    weights[prefix + name] = _padded(weights[prefix + name], name, shape, num_heads)
    return Decilm(
        _config(config, full.layers, blocks, num_heads, head_dim, model.dtype),
        weights,
        num_heads,
        {i: layer.heads for i, layer in enumerate(full.layers) if 0 < layer.heads < num_heads},
        sum(weight.numel() for weight in weights.values()) - before,
        tuple(i for i, block in enumerate(blocks) if "intermediate_size" in block["ffn"]),
    )


def save_decilm(
    model: PreTrainedModel,
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    extra: Callable[[Path], None] | None = None,
    setting: str = "export.path",
) -> Decilm:
    """Writes ``model`` in that layout; arguments and the way of writing as :func:`nas_llm.save_pretrained`.

    Raises:
        ValueError: as :func:`decilm_of` and :func:`nas_llm.save_pretrained`.
    """
    made = decilm_of(model)

    def write(folder: Path) -> None:
        save_file(made.weights, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(made.config, indent=2) + "\n")
        (folder / CONFIG_MODULE).write_text(_CONFIG_SOURCE)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)

    write_directory(path, write, tokenizer=tokenizer, extra=extra, setting=setting)
    return made


def _obstacles(model: PreTrainedModel, layers: tuple[LayerChoice, ...], num_heads: int, head_dim: int) -> Iterator[str]:
    operators = operators_of(model)
    yield from network_obstacles(model.config)
    if is_rotated(model):
        yield "its residual stream is rotated by sublayer"
    named = operators.blocks if operators is not None else (BlockOperators(),) * len(layers)
    attended = False  # whether there is a residual stream yet
    for index, (layer, block) in enumerate(zip(layers, named, strict=True)):
        narrow = layer.kv_groups > 0 and (layer.head_dim != head_dim or _is_narrow(model, index))
        for sublayer, why in block_obstacles(block, layer, num_heads=num_heads, narrow=narrow, attended=attended):
            name = block.of(sublayer).name
            yield f"layer {index} {sublayer}: {_named(name, layer) if sublayer == 'attention' else name} ({why})"
        attended = attended or attends(block, layer)
    if not attended:
        yield "no layer has attention"
    for name, module in quantized_modules(model).items():
        yield f"{name}: integers of {module.bits} bits"


def _named(operator: str, layer: LayerChoice) -> str:
    """The teacher's attention, or that of a sub-network, by its sizes."""
    return f"heads-{layer.kv_groups}x{layer.heads_per_group}x{layer.head_dim}" if operator == "teacher" else operator


def _is_narrow(model: PreTrainedModel, index: int) -> bool:
    row = family_of(model.config)
    block = list(model.get_submodule(row.layers).children())[index]
    return isinstance(block.get_submodule(row.attention), NarrowAttention)


def _block_config(layer: LayerChoice, num_heads: int, hidden: int) -> dict[str, Any]:
    group = num_heads // layer.kv_groups if layer.kv_groups else None
    attention = {
        "no_op": group is None,
        "n_heads_in_group": group,
        "replace_with_linear": False,
        "sparsify": None,
        "window_length": None,
        "num_sink_tokens": None,
        "use_prefill_window_in_sink_attention": False,
        "unshifted_sink": False,
    }
    ffn: dict[str, Any] = {"no_op": not layer.ffn, "replace_with_linear": False, "sparsify": None}
    if layer.ffn % _MULTIPLE == 0:
        ffn["ffn_mult"] = 3 * layer.ffn / (2 * hidden) if layer.ffn else None
    else:
        ffn["intermediate_size"] = layer.ffn
    return {"attention": attention, "ffn": ffn}


def intermediate_size(ffn_mult: float, hidden: int) -> int:
    """The width that readers make of ``ffn_mult``."""
    width = int(2 * ffn_mult * hidden / 3)
    return -(-width // _MULTIPLE) * _MULTIPLE


def _padded(weight: Tensor, name: str, shape: tuple[int, int, int], num_heads: int) -> Tensor:
    """Zeros in the place of the query heads that a layer lacks, in each of its KV groups: ``shape`` (KV groups, heads
    per group, channels) -> (KV groups, num_heads / KV groups, channels)."""
    groups, per_group, channels = shape
    rest = weight.shape[0] if name.startswith("o_proj") else weight[0].numel() if weight.ndim == 2 else 1
    heads = weight.T if name.startswith("o_proj") else weight
    whole = weight.new_zeros(groups, num_heads // groups, channels, rest)
    whole[:, :per_group] = heads.reshape(groups, per_group, channels, rest)
    flat = whole.reshape(num_heads * channels, rest)
    if name.startswith("o_proj"):
        return flat.T.contiguous()
    return flat if weight.ndim == 2 else flat[:, 0].contiguous()


def _config(
    config: PreTrainedConfig,
    layers: tuple[LayerChoice, ...],
    blocks: list[dict[str, Any]],
    num_heads: int,
    head_dim: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    rope = dict(config.rope_parameters)
    kind = rope.get("rope_type", "default")
    qwen = {"qkv_bias": True} if config.model_type == "qwen2" else {}
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "auto_map": {"AutoConfig": f"{CONFIG_MODULE.removesuffix('.py')}.DeciLMConfig"},
        "dtype": str(dtype).removeprefix("torch."),
        "torch_dtype": str(dtype).removeprefix("torch."),
        **{key: getattr(config, key) for key in _COPIED},
        "num_hidden_layers": len(layers),
        "num_attention_heads": num_heads,
        "num_key_value_heads": max(layer.kv_groups for layer in layers),
        "head_dim": head_dim,
        "intermediate_size": max(layer.ffn for layer in layers),
        "attention_bias": bool(getattr(config, "attention_bias", False)),
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        **qwen,
        # once as transformers 5 says it, once as 4 did
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        **({} if kind == "default" else {"rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"}}),
        "block_configs": blocks,
    }
