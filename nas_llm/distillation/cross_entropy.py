"""Cross-entropy with the teacher: soft, -sum_v p_t(v) log p_s(v) with p = softmax(z / T), or hard, -log p_s(argmax
p_t).

The soft one has the gradient of the forward divergence and another value (it adds the teacher's entropy); the hard one
takes the teacher's best token for a label, so T must be 1 there. Shapes: logits (..., vocabulary), labels (...).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nas_llm.distillation.mix import IGNORED, check_mix, hard_loss, in_full_precision, soft_loss


@dataclass(frozen=True)
class CrossEntropy:
    """``alpha`` weighs the labels' cross-entropy, ``beta`` that with the teacher's ``targets``, "soft" or "hard"."""

    alpha: float = 0.5
    beta: float = 0.5
    temperature: float = 1.0
    targets: Literal["soft", "hard"] = "soft"

    def __post_init__(self) -> None:
        check_mix("CrossEntropy", self.alpha, self.beta, self.temperature)
        if self.targets not in ("soft", "hard"):
            raise ValueError(f"distillation.targets={self.targets}: allowed are soft and hard")
        if self.targets == "hard" and self.temperature != 1:
            raise ValueError(f"distillation.temperature={self.temperature} has no effect on hard targets: set it to 1")

    @property
    def uses_teacher(self) -> bool:
        return self.beta > 0

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        if not self.beta:
            return self.alpha * hard_loss(student_logits, labels)
        assert teacher_logits is not None
        if self.targets == "hard":
            best = torch.where(labels == IGNORED, IGNORED, teacher_logits.argmax(-1))
            loss = self.beta * hard_loss(student_logits, best)
            return loss + self.alpha * hard_loss(student_logits, labels) if self.alpha else loss
        teacher = torch.softmax(in_full_precision(teacher_logits) / self.temperature, -1)
        student, weight = in_full_precision(student_logits), self.beta * self.temperature**2
        if self.temperature == 1:
            return soft_loss(student, teacher, labels, soft=weight, hard=self.alpha)
        loss = soft_loss(student / self.temperature, teacher, labels, soft=weight)
        return loss + self.alpha * hard_loss(student_logits, labels) if self.alpha else loss
