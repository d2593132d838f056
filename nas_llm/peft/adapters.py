"""peft's own LoRA layers inside a super-network: put in, followed by the architecture, taken out.

For a weight W (out, in), A is (rank, in) and B is (out, rank): two linear layers whose axes are those of W and a rank.
Sliced by the same architecture, they give mode A (rank alone) and mode B (rank and channels) of elastic adapters
(paper 2, section 3). The scaling stays alpha / r of the whole rank (LoNAS, Shears), so that a smaller rank is the
whole one with rows of A and columns of B left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nas_llm.models.attached import Attached
from nas_llm.models.axes import Layout, rank_axis
from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.supernet import Supernet
from nas_llm.peft.groups import Target

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora.layer import LoraLayer

SPARSE_BASE = "base_is_sparse"  # attribute of an adapted module
ACCIDENTAL = 0.01  # of a weight's entries may be zero by themselves
HALF = (torch.float16, torch.bfloat16)
NAME = "default"  # of the adapter, which peft leaves out of file names


def inject(supernet: Supernet, targets: Sequence[Target], config: LoraConfig, *, seed: int) -> None:
    """Puts adapters beside ``targets`` and freezes everything else; the network's function stays (B is zero).

    A is drawn from ``seed``, whatever other random numbers have been drawn. Beside weights in half precision the
    adapters are in float32, as peft trains them: steps of a usual learning rate are lost in bfloat16's 8 bits.

    Raises:
        ValueError: the network has adapters already, or a rank is above the size of a module.
    """
    if supernet.attached:
        raise ValueError("this super-network has adapters already: take them off first (nas_llm.peft.adapters.remove)")
    _refuse_large_rank(targets, config.r)
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.simplefilter("ignore")  # of tied weights and Conv1D: both are provided for here
        inject_adapter_in_model(config, supernet.model, adapter_name=NAME)
    if supernet.model.dtype in HALF:
        for name, parameter in supernet.model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
    layers = {id(layer.get_base_layer()): layer for _, layer in lora_layers(supernet.model)}
    assert len(layers) == len(targets)
    mark_sparse(supernet.model, supernet.made_sparse)
    supernet.attach([part for target in targets for part in _parts(target, layers[id(target.module)], config.r)])


def mark_sparse(model: nn.Module, known: Container[str] = ()) -> None:
    """Notes beside which adapters a sparse weight stands, whose zeros are to stay: those ``known``, by their names, to
    have been made sparse, and those with so many zeros that it is no accident."""
    for name, layer in lora_layers(model):
        base = base_of(layer)
        counted = name not in known and not isinstance(base, QuantizedLinear)
        zeros = int((base.weight == 0).sum()) / base.weight.numel() if counted else 0.0
        vars(layer)[SPARSE_BASE] = name in known or zeros > ACCIDENTAL


def is_sparse(layer: LoraLayer) -> bool:
    """Whether the weight beside the adapter is sparse, as ``mark_sparse`` has noted."""
    return bool(vars(layer)[SPARSE_BASE])


def remove(supernet: Supernet) -> None:
    """Takes the adapters off, unmerged, and lets the network train whole again."""
    supernet.detach()
    strip(supernet.model)
    supernet.model.requires_grad_(True)


def strip(model: nn.Module) -> None:
    """Puts every adapted module's own in its place again."""
    for name, layer in list(lora_layers(model)):
        parent, _, last = name.rpartition(".")
        model.get_submodule(parent)._modules[last] = layer.get_base_layer()
    vars(model).pop("peft_config", None)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Every adapted module with its name."""
    from peft.tuners.lora.layer import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def factors(layer: LoraLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """The active A (rank, in) and B (out, rank) of an adapted module."""
    untyped: Any = layer
    if NAME in layer.lora_A:
        return untyped.lora_A[NAME].weight, untyped.lora_B[NAME].weight
    return untyped.lora_embedding_A[NAME], untyped.lora_embedding_B[NAME]


def base_of(layer: LoraLayer) -> Any:
    """The network's own module, beside which the adapter stands."""
    return layer.get_base_layer()


def _parts(target: Target, layer: LoraLayer, rank: int) -> Iterator[Attached]:
    axis = rank_axis(target.group)

    def part(module: nn.Module, parameter: str, *layout: Layout) -> Attached:
        return Attached(module, {parameter: layout}, target.layer, target.group, rank)

    if NAME in layer.lora_A:
        yield part(layer.lora_A[NAME], "weight", axis, target.into)
        yield part(layer.lora_B[NAME], "weight", target.out, axis)
    else:
        yield part(layer.lora_embedding_A, NAME, axis, target.into)
        yield part(layer.lora_embedding_B, NAME, target.out, axis)
    if NAME in layer.lora_magnitude_vector:
        yield part(layer.lora_magnitude_vector[NAME], "weight", target.out)


def _refuse_large_rank(targets: Sequence[Target], rank: int) -> None:
    for target in targets:
        size = min(target.module.weight.shape)  # type: ignore[union-attr, arg-type]
        if rank > size:
            raise ValueError(
                f"peft.r={rank} is above the size of {target.name}, {size}: allowed is at most {size}, or leave the "
                "module out with peft.target_modules=[...]"
            )
