"""Forward Kullback-Leibler divergence KL(teacher || student) = sum_v p_t(v) (log p_t(v) - log p_s(v)), paper 4's
in-place distillation.

With p = softmax(z / T), the gradient with respect to the student's logits z_s is (p_s - p_t) / T. Shapes: logits (...,
vocabulary), labels (...).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nas_llm.distillation.mix import check_mix, counted_sum, hard_loss, in_full_precision


@dataclass(frozen=True)
class ForwardKL:
    """``alpha`` weighs the labels' cross-entropy, ``beta`` the divergence at ``temperature`` (times its square)."""

    alpha: float = 0.5
    beta: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_mix("ForwardKL", self.alpha, self.beta, self.temperature)

    @property
    def uses_teacher(self) -> bool:
        return self.beta > 0

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        loss = student_logits.new_zeros((), dtype=in_full_precision(student_logits).dtype)
        if self.alpha:
            loss = loss + self.alpha * hard_loss(student_logits, labels)
        if self.beta:
            assert teacher_logits is not None
            student = torch.log_softmax(in_full_precision(student_logits) / self.temperature, -1)
            teacher = torch.log_softmax(in_full_precision(teacher_logits) / self.temperature, -1)
            divergence = (teacher.exp() * (teacher - student)).sum(-1)
            loss = loss + self.beta * self.temperature**2 * counted_sum(divergence, labels)
        return loss
