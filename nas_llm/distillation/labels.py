"""No teacher: every sub-network learns from the labels alone, by the causal cross-entropy of paper 1 (section 4)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nas_llm.distillation.mix import hard_loss


@dataclass(frozen=True)
class Labels:
    """The cross-entropy with the labels; the teacher is not read."""

    @property
    def uses_teacher(self) -> bool:
        return False

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        return hard_loss(student_logits, labels)
