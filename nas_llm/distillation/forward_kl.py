"""Forward Kullback-Leibler divergence KL(teacher || student) = sum_v p_t(v) (log p_t(v) - log p_s(v)), paper 4's
in-place distillation.

With p = softmax(z / T), the gradient with respect to the student's logits z_s is (p_s - p_t) / T. Shapes: logits (...,
vocabulary), labels (...).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nas_llm.distillation.mix import (
    check_mix,
    counted_sum,
    hard_loss,
    in_full_precision,
    log_probabilities,
    mixed_loss,
    soft_loss,
)


@dataclass(frozen=True)
class ForwardKL:
    """``alpha`` weighs the labels' cross-entropy, ``beta`` the divergence at ``temperature`` (times its square);
    ``max_ratio`` weighs it by cross-entropy over divergence besides (see ``mix``)."""

    alpha: float = 0.5
    beta: float = 0.5
    temperature: float = 1.0
    max_ratio: float | None = None

    def __post_init__(self) -> None:
        check_mix("ForwardKL", self.alpha, self.beta, self.temperature, self.max_ratio)

    @property
    def uses_teacher(self) -> bool:
        return self.beta > 0

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        if not self.beta:
            return self.alpha * hard_loss(student_logits, labels)
        assert teacher_logits is not None
        with torch.no_grad():
            log_teacher = log_probabilities(teacher_logits, self.temperature)
            teacher = log_teacher.exp()
            minus_entropies = torch.linalg.vecdot(teacher, log_teacher)
        if self.max_ratio is not None:
            student = log_probabilities(student_logits, self.temperature)
            divergence = self.temperature**2 * (minus_entropies - torch.linalg.vecdot(teacher, student))
            return mixed_loss(
                student_logits, labels, divergence, alpha=self.alpha, beta=self.beta, max_ratio=self.max_ratio
            )
        minus_entropy = counted_sum(minus_entropies, labels)
        weight = self.beta * self.temperature**2
        student = in_full_precision(student_logits)
        if self.temperature == 1:
            return weight * minus_entropy + soft_loss(student, teacher, labels, soft=weight, hard=self.alpha)
        loss = weight * minus_entropy + soft_loss(student / self.temperature, teacher, labels, soft=weight)
        return loss + self.alpha * hard_loss(student_logits, labels) if self.alpha else loss
