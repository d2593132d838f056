"""Symmetric Kullback-Leibler divergence: (1 - r) KL(teacher || student) + r KL(student || teacher), r = 1/2.

With r = 1/2 it is half of Jeffreys' divergence; the library of papers 1 and 4 has the same mixture with r = 0.9.
p = softmax(z / T). Shapes: logits (..., vocabulary), labels (...).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nas_llm.distillation.mix import check_mix, hard_loss, log_probabilities, mixed_loss


@dataclass(frozen=True)
class SymmetricKL:
    """``alpha`` weighs the labels' cross-entropy, ``beta`` the divergence at ``temperature`` (times its square), in
    which the reverse one has the share ``reverse``; ``max_ratio`` weighs it by cross-entropy over divergence besides
    (see ``mix``)."""

    alpha: float = 0.5
    beta: float = 0.5
    temperature: float = 1.0
    reverse: float = 0.5
    max_ratio: float | None = None

    def __post_init__(self) -> None:
        check_mix("SymmetricKL", self.alpha, self.beta, self.temperature, self.max_ratio)
        if not 0 < self.reverse < 1:
            raise ValueError(
                f"distillation.reverse={self.reverse}: allowed is between 0 and 1 "
                "(for all or nothing: distillation=reverse_kl, distillation=forward_kl)"
            )

    @property
    def uses_teacher(self) -> bool:
        return self.beta > 0

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        if not self.beta:
            return self.alpha * hard_loss(student_logits, labels)
        assert teacher_logits is not None
        student = log_probabilities(student_logits, self.temperature)
        teacher = log_probabilities(teacher_logits, self.temperature)
        # both divergences are sums over v of (log p_s - log p_t), weighted by p_s and by -p_t
        weights = self.reverse * student.exp() - (1 - self.reverse) * teacher.exp()
        divergence = self.temperature**2 * (weights * (student - teacher)).sum(-1)
        return mixed_loss(
            student_logits, labels, divergence, alpha=self.alpha, beta=self.beta, max_ratio=self.max_ratio
        )
