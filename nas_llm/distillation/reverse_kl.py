"""Reverse Kullback-Leibler divergence KL(student || teacher) = sum_v p_s(v) (log p_s(v) - log p_t(v)): the student
seeks one mode of the teacher.

p = softmax(z / T). Shapes: logits (..., vocabulary), labels (...).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nas_llm.distillation.mix import check_mix, counted_sum, hard_loss, in_full_precision


@dataclass(frozen=True)
class ReverseKL:
    """``alpha`` weighs the labels' cross-entropy, ``beta`` the divergence at ``temperature`` (times its square)."""

    alpha: float = 0.5
    beta: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_mix("ReverseKL", self.alpha, self.beta, self.temperature)

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
            divergence = (student.exp() * (student - teacher)).sum(-1)
            loss = loss + self.beta * self.temperature**2 * counted_sum(divergence, labels)
        return loss
