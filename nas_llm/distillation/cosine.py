"""One minus the cosine of the angle between the student's and the teacher's probabilities, or between their logits.

``of="probabilities"``: p = softmax(z / T), as in the library of papers 1 and 4 (which leaves out the factor T^2);
tokens that the teacher finds likely decide. ``of="logits"``: the whole vocabulary counts alike; the size of the logits
does not count, and so neither does a temperature: T must be 1 there. Shapes: logits (..., vocabulary), labels (...).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from nas_llm.distillation.mix import check_mix, hard_loss, in_full_precision, log_probabilities, mixed_loss


@dataclass(frozen=True)
class Cosine:
    """``alpha`` weighs the labels' cross-entropy, ``beta`` the distance at ``temperature`` (times its square);
    ``max_ratio`` weighs it by cross-entropy over distance besides (see ``mix``)."""

    alpha: float = 0.5
    beta: float = 0.5
    temperature: float = 1.0
    of: Literal["probabilities", "logits"] = "probabilities"
    max_ratio: float | None = None

    def __post_init__(self) -> None:
        check_mix("Cosine", self.alpha, self.beta, self.temperature, self.max_ratio)
        if self.of not in ("probabilities", "logits"):
            raise ValueError(f"distillation.of={self.of}: allowed are probabilities and logits")
        if self.of == "logits" and self.temperature != 1:
            raise ValueError(
                f"distillation.temperature={self.temperature} has no effect on the angle between logits: "
                "set it to 1, or distillation.of=probabilities"
            )

    @property
    def uses_teacher(self) -> bool:
        return self.beta > 0

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        if not self.beta:
            return self.alpha * hard_loss(student_logits, labels)
        assert teacher_logits is not None
        student, teacher = self._vectors(student_logits), self._vectors(teacher_logits)
        distance = self.temperature**2 * (1 - F.cosine_similarity(student, teacher, dim=-1))
        return mixed_loss(student_logits, labels, distance, alpha=self.alpha, beta=self.beta, max_ratio=self.max_ratio)

    def _vectors(self, logits: Tensor) -> Tensor:
        return in_full_precision(logits) if self.of == "logits" else log_probabilities(logits, self.temperature).exp()
