"""2:4 weights on the semi-structured kernels of torch (torch.sparse.to_sparse_semi_structured; Mishra et al.,
"Accelerating Sparse Deep Neural Networks", 2021): half of the products are left out, on GPUs that can.

Of a weight (out, in) in half precision the kernels read the 2 of every 4 neighbours along the inputs that stay, and 2
bits for each that say which. For measuring and serving: such a weight is neither trained nor saved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from nas_llm.sparsity.counting import has_pattern

DTYPES = (torch.float16, torch.bfloat16)
MULTIPLES = (32, 64)  # of out and in, for which every kernel of torch has a size
CAPABILITY = (8, 0)  # Ampere


@dataclass(frozen=True)
class OnKernels:
    """Names of the linear modules that run on the kernels, and of those with 2:4 weights that stay dense by their
    shape."""

    converted: tuple[str, ...]
    dense: tuple[str, ...]


def two_four_modules(model: PreTrainedModel) -> OnKernels:
    """The linear modules of a model by what the kernels can do with them; nothing is changed.

    Raises:
        ValueError: none has the pattern 2:4 in its weight and a shape that the kernels take.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "weight" in module._parameters and has_pattern(module.weight, 2, 4)
    }
    fits = {
        name: all(size % multiple == 0 for size, multiple in zip(module.weight.shape, MULTIPLES, strict=True))
        for name, module in found.items()
    }
    if not any(fits.values()):
        why = (
            f"the {len(found)} linear modules that have it are not multiples of {MULTIPLES[0]} x {MULTIPLES[1]}"
            if found
            else "no linear module has the pattern 2:4 in its weight"
        )
        raise ValueError(
            f"semi-structured kernels: {why}; make one with nas-llm prune baseline=sparsegpt baseline.pattern=2:4, or "
            "measure the model as it is"
        )
    return OnKernels(
        tuple(name for name, fitting in fits.items() if fitting),
        tuple(name for name, fitting in fits.items() if not fitting),
    )


def refuse_without_kernels(device: torch.device, asked: str) -> None:
    """
    Raises:
        ValueError: the device has no such kernels; ``asked`` is what needs them.
    """
    if device.type != "cuda":
        raise ValueError(
            f"{asked}: semi-structured kernels need a CUDA device, this is {device.type}: measure the model as it is, "
            "or on such a device"
        )
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        raise ValueError(
            f"{asked}: semi-structured kernels need compute capability {'.'.join(map(str, CAPABILITY))}, "
            f"{torch.cuda.get_device_name(device)} has less: measure the model as it is"
        )


@torch.no_grad()
def semi_structured(model: PreTrainedModel) -> OnKernels:
    """Puts every 2:4 weight of ``model`` on the kernels, in place.

    Raises:
        ValueError: the model is not on a CUDA device that has them, is not in half precision, or has no weight for
            them; nothing has been changed then.
    """
    refuse_without_kernels(model.device, "2:4 weights")
    if model.dtype not in DTYPES:
        dtype = str(model.dtype).removeprefix("torch.")
        raise ValueError(
            f"semi-structured kernels take float16 and bfloat16, the model has {dtype}: set dtype=bfloat16"
        )
    found = two_four_modules(model)
    for name in found.converted:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        sparse = torch.sparse.to_sparse_semi_structured(linear.weight.detach().contiguous())
        linear.weight = nn.Parameter(sparse, requires_grad=False)
    return found
