"""What the losses share: the cross-entropy with the labels and the mixing of hard and soft losses.

    loss = alpha * CE(student, labels) + beta * T^2 * divergence(student / T, teacher / T)

T^2 keeps the size of the soft gradients independent of the temperature (Hinton et al. 2015, section 2). Sums over
counted tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def hard_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross-entropies with ``labels`` (...), of ``logits`` (..., vocabulary); labels of -100 count
    nothing."""
    flat = in_full_precision(logits).flatten(0, -2)
    return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum")


def soft_loss(logits: Tensor, targets: Tensor, labels: Tensor, *, soft: float, hard: float = 0.0) -> Tensor:
    """Sum over counted tokens of ``-soft * sum_v targets(v) log p(v) - hard * log p(label)``, p = softmax(logits).

    One softmax serves both terms; the gradient with respect to the logits is ``(soft + hard) p - soft targets - hard
    onehot(label)``. ``logits`` and ``targets`` (..., vocabulary) in full precision, ``targets`` sum to 1; ``labels``
    (...).
    """
    return _SoftLoss.apply(logits, targets, labels, soft, hard)


class _SoftLoss(torch.autograd.Function):
    """The passes over the vocabulary that plain autograd would take are three times as many."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, labels: Tensor, soft: float, hard: float) -> Tensor:
        log_p = torch.log_softmax(logits, -1)
        per_token = torch.linalg.vecdot(targets, log_p) * -soft
        if hard:
            per_token -= hard * log_p.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
        ctx.save_for_backward(log_p, targets, labels)
        ctx.soft, ctx.hard = soft, hard
        return counted_sum(per_token, labels)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        log_p, targets, labels = ctx.saved_tensors
        slope = log_p.exp()
        if ctx.soft + ctx.hard != 1:
            slope *= ctx.soft + ctx.hard
        slope.sub_(targets, alpha=ctx.soft)
        if ctx.hard:
            index = labels.clamp(min=0)[..., None]
            slope.scatter_add_(-1, index, slope.new_full(index.shape, -ctx.hard))
        slope *= torch.where(labels == IGNORED, 0.0, grad_output)[..., None]
        return slope, None, None, None, None


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
