"""The stock class of a model: whether it can hold what a sub-network was cut to, and models of it without weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from nas_llm.models.families import FAMILIES, family_of
from nas_llm.models.quantized_linear import QuantizedLinear, quantized_modules
from nas_llm.models.rotated_stream import KEY as ROTATED


def is_stock(model: PreTrainedModel) -> bool:
    """Whether the stock class, built from the model's own configuration, has the same weights and constants."""
    origin = getattr(model.config, "nas_llm", None)
    if origin is None or model.config.model_type not in FAMILIES:
        return True
    if "operators" in origin or ROTATED in origin:
        return False
    try:
        config = _stock_config(model)
        stock = empty_model(type(model), config)
    except (ValueError, StrictDataclassError):  # sizes that the stock configuration or constructor refuses
        return False
    if _shapes(model) != _shapes(stock):
        return False
    row = family_of(config)
    blocks = (model.get_submodule(row.layers).children(), stock.get_submodule(row.layers).children())
    for mine, other in zip(*blocks, strict=True):
        constants = [vars(block.get_submodule(row.attention)) for block in (mine, other)]
        if any(constants[0][name] != constants[1][name] for name in row.constants if name != "config"):
            return False
    buffers = dict(stock.named_buffers())
    return all(
        name in buffers
        and buffer.shape == buffers[name].shape
        and torch.allclose(buffer.float(), buffers[name].to(buffer).float(), rtol=1e-5)
        for name, buffer in model.named_buffers()
        if not isinstance(model.get_submodule(name.rpartition(".")[0]), QuantizedLinear)
    )


def base_config(origin: Mapping[str, Any]) -> PreTrainedConfig:
    """The stock configuration that a cut model's weights first came from."""
    keys = dict(origin["base_config"])
    return AutoConfig.for_model(keys.pop("model_type"), **keys)


def stock_class(config: PreTrainedConfig) -> Any:
    """The stock class of causal language models of this configuration. Raises KeyError where there is none."""
    return AutoModelForCausalLM._model_mapping[type(config)]


def empty_model(model_class: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """A model whose weights take no memory and whose buffers (rotary frequencies, scales) are real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return model_class(config)


def _stock_config(model: PreTrainedModel) -> Any:
    """The model's configuration as a stock loader will read it."""
    keys = model.config.to_dict()
    keys.pop("nas_llm", None)
    config = type(model.config).from_dict(keys)
    config._attn_implementation = model.config._attn_implementation
    return config


def _shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Of every weight and persistent buffer; a quantised layer has that of the weight it stands for."""
    quantized = quantized_modules(model)
    held = {f"{name}.{buffer}" for name, layer in quantized.items() for buffer in layer._buffers}
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items() if name not in held}
    return shapes | {f"{name}.weight": (layer.out_features, layer.in_features) for name, layer in quantized.items()}
