"""What the losses share: the cross-entropy with the labels and the mixing of hard and soft losses.

    loss = alpha * CE(student, labels) + beta * T^2 * divergence(student / T, teacher / T)

T^2 keeps the size of the soft gradients independent of the temperature (Hinton et al. 2015, section 2). Sums over
counted tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def hard_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross-entropies with ``labels`` (...), of ``logits`` (..., vocabulary); labels of -100 count
    nothing."""
    flat = in_full_precision(logits).flatten(0, -2)
    return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum")


def in_full_precision(logits: Tensor) -> Tensor:
    """float32 at least: a softmax over a vocabulary loses its tail in half precision."""
    return logits if logits.dtype == torch.float64 else logits.float()


def counted_sum(per_token: Tensor, labels: Tensor) -> Tensor:
    """Sum of ``per_token`` (...) where ``labels`` (...) are counted."""
    return torch.where(labels == IGNORED, 0.0, per_token).sum()


def check_mix(name: str, alpha: float, beta: float, temperature: float) -> None:
    """Raise ValueError for weights that mean nothing."""
    if min(alpha, beta) < 0 or alpha + beta <= 0:
        raise ValueError(
            f"distillation.alpha={alpha}, distillation.beta={beta} of {name}: "
            "allowed are weights of at least 0 that are not both 0"
        )
    if temperature <= 0:
        raise ValueError(f"distillation.temperature={temperature} of {name}: allowed is above 0, for instance 1")
