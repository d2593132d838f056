"""What the losses share: the cross-entropy with the labels and the mixing of hard and soft losses.

    loss = sum_i alpha * CE_i(student, label) + beta * w_i * T^2 * divergence_i(student / T, teacher / T)

T^2 keeps the size of the soft gradients independent of the temperature (Hinton et al. 2015, section 2). Sums over
counted tokens i. w_i is 1, or, where a loss has ``max_ratio``, min(CE_i / (T^2 divergence_i), max_ratio) without
gradient: both terms then pull equally hard, whatever the sizes of the two losses. The experiment code of papers 1 and 4
offers that scheme with the ratio of the batch's means; a ratio per token is what makes it independent of chunks,
micro-batches and ranks, and the bound keeps the gradient finite where the student already agrees with the teacher.
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


def mixed_loss(
    student_logits: Tensor,
    labels: Tensor,
    divergence: Tensor,
    *,
    alpha: float,
    beta: float,
    max_ratio: float | None = None,
) -> Tensor:
    """The sum above; ``divergence`` (...) is that of every token, times T^2; ``student_logits`` (..., vocabulary)."""
    if max_ratio is None:
        loss = beta * counted_sum(divergence, labels)
        return loss + alpha * hard_loss(student_logits, labels) if alpha else loss
    flat = in_full_precision(student_logits).flatten(0, -2)
    hard = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="none").view_as(divergence)
    with torch.no_grad():
        ratio = (hard / divergence.clamp(min=torch.finfo(divergence.dtype).tiny)).clamp(max=max_ratio)
    return counted_sum(alpha * hard + beta * ratio * divergence, labels)


def log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(z / T) of (..., vocabulary), in full precision."""
    return torch.log_softmax(in_full_precision(logits) / temperature, -1)


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


def check_mix(name: str, alpha: float, beta: float, temperature: float = 1.0, max_ratio: float | None = None) -> None:
    """Raise ValueError for weights that mean nothing, or that cannot take effect."""
    if min(alpha, beta) < 0 or alpha + beta <= 0:
        raise ValueError(
            f"distillation.alpha={alpha}, distillation.beta={beta} of {name}: "
            "allowed are weights of at least 0 that are not both 0"
        )
    if temperature <= 0:
        raise ValueError(f"distillation.temperature={temperature} of {name}: allowed is above 0, for instance 1")
    if max_ratio is not None and max_ratio <= 0:
        raise ValueError(
            f"distillation.max_ratio={max_ratio} of {name}: allowed is above 0, for instance 10, "
            "or null for fixed weights"
        )
    if max_ratio is not None and not beta:
        raise ValueError(
            f"distillation.max_ratio={max_ratio} of {name} cannot take effect with distillation.beta=0, which leaves "
            "the teacher out: set distillation.max_ratio=null"
        )
