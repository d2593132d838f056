"""Which weights a network has, in 16 hex digits."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import nn

from nas_llm.models.quantized_linear import quantized_modules

if TYPE_CHECKING:
    from nas_llm.models.supernet import Supernet

SAMPLED = 4096  # weights of each tensor in the fingerprint


def fingerprint(supernet: Supernet) -> str:
    """As :func:`fingerprint_of_model`, of the network and all that stands beside its weights."""
    return fingerprint_of_model(supernet.model)


@torch.no_grad()
def fingerprint_of_model(model: nn.Module) -> str:
    """16 hex digits of a hash of evenly spaced weights of every tensor, as they lie now.

    In bfloat16, so that a network has the same one whether it was loaded in that precision or in float32.
    """
    digest = hashlib.sha256()
    quantized = quantized_modules(model)
    weights = [*model.named_parameters(), *((name, layer.weight) for name, layer in quantized.items())]
    for name, weight in weights:
        flat = weight.detach().reshape(-1)
        sampled = flat[:: max(1, flat.numel() // SAMPLED)].to("cpu", torch.bfloat16)
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(sampled.contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
