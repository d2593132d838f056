"""Reverse Kullback-Leibler divergence KL(student || teacher) = sum_v p_s(v) (log p_s(v) - log p_t(v)): the student
seeks one mode of the teacher.

p = softmax(z / T). Shapes: logits (..., vocabulary), labels (...).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nas_llm.distillation.mix import check_mix, hard_loss, log_probabilities, mixed_loss


@dataclass(frozen=True)
class ReverseKL:
    """``alpha`` weighs the labels' cross-entropy, ``beta`` the divergence at ``temperature`` (times its square);
    ``max_ratio`` weighs it by cross-entropy over divergence besides (see ``mix``)."""

    alpha: float = 0.5
    beta: float = 0.5
    temperature: float = 1.0
    max_ratio: float | None = None

    def __post_init__(self) -> None:
        check_mix("ReverseKL", self.alpha, self.beta, self.temperature, self.max_ratio)

    @property
    def uses_teacher(self) -> bool:
        return self.beta > 0

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        if not self.beta:
            return self.alpha * hard_loss(student_logits, labels)
        assert teacher_logits is not None
        student = log_probabilities(student_logits, self.temperature)
        teacher = log_probabilities(teacher_logits, self.temperature)
        divergence = self.temperature**2 * (student.exp() * (student - teacher)).sum(-1)
        return mixed_loss(
            student_logits, labels, divergence, alpha=self.alpha, beta=self.beta, max_ratio=self.max_ratio
        )
