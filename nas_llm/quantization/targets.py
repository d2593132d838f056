"""Which linear layers are quantised: all of the transformer blocks, or those that the settings name."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from torch import nn

from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.supernet import Supernet

Targets = Sequence[str] | None
"""Names of modules, or ends of names at a dot (``q_proj``, ``layers.0.mlp.up_proj``); None: all of the blocks."""


def layers_to_quantize(supernet: Supernet, targets: Targets, group_size: int) -> dict[str, nn.Linear]:
    """The layers that are quantised, by their names in the model and in its order.

    Raises:
        ValueError: as :class:`nas_llm.quantization.Quantization` says; nothing has been changed then.
    """
    every = _linear(supernet)
    blocks = [m for modules in supernet.layer_modules for m in modules]
    if targets is None:
        found = {name: module for name, module in every.items() if any(module is m for m in blocks)}
        if not found:
            raise ValueError(
                f"quantization: the blocks of a {supernet.family} hold no linear layers (nn.Linear) to quantise: set "
                "quantization=none"
            )
    else:
        for target in targets or ("",):
            if not any(_matches(name, target) for name in every):
                raise _no_match(targets, target, every)
        found = {name: m for name, m in every.items() if any(_matches(name, target) for target in targets)}
    for name, module in found.items():
        _refuse(supernet, name, module)
    widths = {name: module.in_features for name, module in found.items()}
    for name, width in widths.items():
        if width % group_size:
            common = gcd(*widths.values())
            below = max(size for size in range(1, min(common, group_size) + 1) if common % size == 0)
            raise ValueError(
                f"quantization.group_size={group_size} does not divide the width of {name}, {width}: set "
                f"quantization.group_size={below}, which divides those of all layers, or leave it out of "
                "quantization.targets"
            )
    return found


def _linear(supernet: Supernet) -> dict[str, nn.Linear]:
    return {name: module for name, module in supernet.model.named_modules() if isinstance(module, nn.Linear)}


def _refuse(supernet: Supernet, name: str, module: nn.Linear) -> None:
    if isinstance(module, QuantizedLinear):
        raise ValueError(
            f"{name} is quantised already, to {module.bits} bits: set quantization=none, or model.path to the network "
            "before it was quantised"
        )
    if module._forward_hooks:
        raise ValueError(
            f"{name} adds the rotated residual stream (SliceGPT) to what it writes, so that it is not quantised: leave "
            "it out of quantization.targets"
        )
    weight = module._parameters["weight"]
    assert weight is not None
    others = [n for n, p in supernet.model.named_parameters(remove_duplicate=False) if p is weight]
    if len(others) > 1:
        shared = ", ".join(n for n in others if n != f"{name}.weight")
        raise ValueError(
            f"{name} shares its weight with {shared}, so that it cannot be quantised alone: leave it out of "
            "quantization.targets"
        )
    if not weight.isfinite().all():
        raise ValueError(
            f"weights of {name} are not finite, so that they have no integers: set model.path to a network whose "
            "weights are whole"
        )


def _no_match(targets: Sequence[str], target: str, every: dict[str, nn.Linear]) -> ValueError:
    ends = dict.fromkeys(name.rpartition(".")[2] for name in every)
    return ValueError(
        f"quantization.targets=[{','.join(targets)}]: {target or 'nothing'} is no linear layer; allowed are "
        f"{', '.join(ends)}, longer ends of names as {next(iter(every), 'none')}, or quantization.targets=null for all "
        "of the blocks"
    )


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
