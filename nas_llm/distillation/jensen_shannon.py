"""Jensen-Shannon divergence 1/2 KL(teacher || m) + 1/2 KL(student || m), m = (p_t + p_s) / 2: symmetric, at most log 2.

p = softmax(z / T). The gradient with respect to the student's log-probabilities is 1/2 p_s log(p_s / m): a token that
both networks find improbable pulls little. The code of papers 1 and 4 calls by this name 1/2 KL(m || student) +
1/2 KL(m || teacher), which is another divergence; here is the textbook's (Lin 1991). Shapes: logits (..., vocabulary),
labels (...).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nas_llm.distillation.mix import check_mix, hard_loss, log_probabilities, mixed_loss


@dataclass(frozen=True)
class JensenShannon:
    """``alpha`` weighs the labels' cross-entropy, ``beta`` the divergence at ``temperature`` (times its square);
    ``max_ratio`` weighs it by cross-entropy over divergence besides (see ``mix``)."""

    alpha: float = 0.5
    beta: float = 0.5
    temperature: float = 1.0
    max_ratio: float | None = None

    def __post_init__(self) -> None:
        check_mix("JensenShannon", self.alpha, self.beta, self.temperature, self.max_ratio)

    @property
    def uses_teacher(self) -> bool:
        return self.beta > 0

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        if not self.beta:
            return self.alpha * hard_loss(student_logits, labels)
        assert teacher_logits is not None
        student = log_probabilities(student_logits, self.temperature)
        teacher = log_probabilities(teacher_logits, self.temperature)
        middle = torch.logaddexp(student, teacher) - math.log(2)
        both = student.exp() * (student - middle) + teacher.exp() * (teacher - middle)
        divergence = self.temperature**2 / 2 * both.sum(-1)
        return mixed_loss(
            student_logits, labels, divergence, alpha=self.alpha, beta=self.beta, max_ratio=self.max_ratio
        )
