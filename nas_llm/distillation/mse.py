"""Mean squared difference of the logits, 1/V sum_v (z_s(v) - z_t(v))^2, V the vocabulary's size.

The limit of the divergences at high temperatures (Hinton et al. 2015, section 2.1), but for the mean of the logits,
which these do not see and this one matches. A temperature would cancel: there is none. Shapes: logits (...,
vocabulary), labels (...).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nas_llm.distillation.mix import check_mix, hard_loss, in_full_precision, mixed_loss


@dataclass(frozen=True)
class MSE:
    """``alpha`` weighs the labels' cross-entropy, ``beta`` the squared difference; ``max_ratio`` weighs it by
    cross-entropy over difference besides (see ``mix``)."""

    alpha: float = 0.5
    beta: float = 0.5
    max_ratio: float | None = None

    def __post_init__(self) -> None:
        check_mix("MSE", self.alpha, self.beta, max_ratio=self.max_ratio)

    @property
    def uses_teacher(self) -> bool:
        return self.beta > 0

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        if not self.beta:
            return self.alpha * hard_loss(student_logits, labels)
        assert teacher_logits is not None
        difference = (in_full_precision(student_logits) - in_full_precision(teacher_logits)).square().mean(-1)
        return mixed_loss(
            student_logits, labels, difference, alpha=self.alpha, beta=self.beta, max_ratio=self.max_ratio
        )
