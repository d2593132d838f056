"""Quantised layers in files: compressed-tensors' ``pack-quantized`` format, which transformers and vLLM load.

A quantised layer's buffers are the tensors of that format (``weight_packed``, ``weight_scale``, ``weight_zero_point``,
``weight_shape``), so that a state dict is saved as it is; ``config.json`` gets a ``quantization_config`` that says how
they are read: integers of 2, 4 or 8 bits, asymmetric, one scale and zero point per group of input channels. Codes of
other widths are stored in the next of these, with the same scales and zero points, so that the weights are the same;
``nas_llm_bits`` keeps their own width for this package. Reading files back into quantised layers needs no package but
this one; the stock loader needs compressed-tensors (extra ``quantized``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from nas_llm.models.bit_packing import stored_bits
from nas_llm.models.quantized_linear import QuantizedLinear, quantized_modules
from nas_llm.models.quantized_weight import BITS

METHOD, FORMAT = "compressed-tensors", "pack-quantized"
KEY = "quantization_config"
BITS_KEY = "nas_llm_bits"  # group of the quantization_config -> bits, where they are fewer than are stored
PACKED = ".weight_packed"
_EVERY_LINEAR = "Linear"
_READ = {"type": "int", "symmetric": False, "strategy": "group", "dynamic": False}  # of a group's weights


def quantization_keys(model: nn.Module) -> dict[str, Any]:
    """What ``config.json`` says of a model's quantised layers; nothing where it has none."""
    quantized = quantized_modules(model)
    if not quantized:
        return {}
    names: dict[tuple[int, int], list[str]] = {}
    for name, layer in quantized.items():
        names.setdefault((layer.bits, layer.group_size), []).append(name)
    others = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name not in quantized]
    # By class where all are alike: runtimes that fuse layers (queries, keys and values) know them by other names.
    targets = [[_EVERY_LINEAR]] if len(names) == 1 else list(names.values())
    groups = {
        f"group_{number}": {
            "targets": of_group,
            "weights": {"num_bits": stored_bits(bits), "group_size": group_size, **_READ},
            "input_activations": None,
            "output_activations": None,
            "format": FORMAT,
        }
        for number, ((bits, group_size), of_group) in enumerate(zip(names, targets, strict=True))
    }
    settings = {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": others,
        "kv_cache_scheme": None,
    }
    own = {f"group_{number}": bits for number, (bits, _) in enumerate(names) if bits != stored_bits(bits)}
    return {KEY: settings, BITS_KEY: own} if own else {KEY: settings}


def is_packed(keys: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of a compressed-tensors checkpoint."""
    settings = keys.get(KEY)
    return isinstance(settings, Mapping) and settings.get("quant_method") == METHOD


def quantized_layers(keys: Mapping[str, Any], names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Bits and group size of every layer whose packed codes are among the ``names`` of weights, by a ``config.json``.

    Raises:
        ValueError: a scheme that is not asymmetric, group-wise integers of 2, 4 or 8 bits; a layer without one.
        KeyError, TypeError: settings that are none of compressed-tensors.
    """
    settings, own, found = keys[KEY], keys.get(BITS_KEY, {}), {}
    for layer in (name.removesuffix(PACKED) for name in names if name.endswith(PACKED)):
        for group_name, group in settings["config_groups"].items():
            if layer not in group["targets"] and _EVERY_LINEAR not in group["targets"]:
                continue
            weights = group["weights"]
            unread = {key: weights.get(key) for key, value in _READ.items() if weights.get(key) != value}
            stored, bits = int(weights["num_bits"]), int(own.get(group_name, weights["num_bits"]))
            if bits not in BITS or stored_bits(bits) != stored:
                raise ValueError(f"{layer} has {bits} bits, stored in {stored}; read are 2, 4 and 8 bits")
            if unread or group.get("input_activations") or settings["format"] != FORMAT:
                raise ValueError(
                    f"{layer} is quantised as {settings['format']} with {unread or 'quantised activations'}; read are "
                    f"{FORMAT} weights, asymmetric integers by groups"
                )
            found[layer] = (bits, int(weights["group_size"]))
            break
        else:
            raise ValueError(f"{layer} has packed codes, and no group of {KEY} is for it")
    if not found:
        raise ValueError(f"none of its weights are packed; read is the format {FORMAT}")
    return found


def place(model: nn.Module, layers: Mapping[str, tuple[int, int]], weights: Mapping[str, Tensor] | None = None) -> None:
    """Puts quantised layers in the place of a model's linear ones, by name; ``weights`` None: without memory.

    Raises:
        ValueError: there is no such linear layer, or it has another shape.
    """
    for name, (bits, group_size) in layers.items():
        module = _linear(model, name)
        bias: nn.Parameter | None = module.bias
        layer = QuantizedLinear(
            module.in_features, module.out_features, bits=bits, group_size=group_size, bias=bias, device="meta"
        )
        if weights is not None:
            held = {buffer: weights[f"{name}.{buffer}"] for buffer in layer._buffers}
            if any(value.shape != layer._buffers[buffer].shape for buffer, value in held.items()):  # type: ignore[union-attr]
                raise ValueError(f"the packed weight of {name} is of another shape than config.json says")
            layer._buffers.update(held)
        _put(model, module, layer)


def _linear(model: Any, name: str) -> nn.Linear:
    """The layer of a name in a file: some families' output head has another one there (gpt_neox: embed_out)."""
    modules = dict(model.named_modules())
    module = modules[name] if name in modules else model.get_output_embeddings()
    if not isinstance(module, nn.Linear) or (name not in modules and "." in name):
        raise ValueError(f"there is no linear layer {name}, whose packed codes are in the file")
    return module


def _put(model: nn.Module, before: nn.Module, after: nn.Module) -> None:
    parent, name = next((m, n) for m in model.modules() for n, child in m.named_children() if child is before)
    after.train(before.training)
    setattr(parent, name, after)
