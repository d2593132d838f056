"""Forward divergence on the k tokens that the teacher finds most likely, K = top_k(z_t).

    rest="bucket":       sum_{v in K} p_t(v) log(p_t(v) / p_s(v)) + r_t log(r_t / r_s), r = 1 - sum_{v in K} p(v)
    rest="renormalise":  sum_{v in K} q_t(v) log(q_t(v) / q_s(v)), q = p / sum_{v in K} p(v)

with p = softmax(z / T). All other tokens are one bucket in the first, which is therefore a divergence that grows with k
to the full one, and holds the student's mass outside of K to the teacher's. It is the default for that. The second
ignores that mass, as losses from stored top-k logits do: a student may put any of it elsewhere, held by the labels
alone. Both are the full divergence where k is the vocabulary. Shapes: logits (..., vocabulary), labels (...).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nas_llm.distillation.mix import check_mix, hard_loss, in_full_precision, mixed_loss


@dataclass(frozen=True)
class TopK:
    """``k`` tokens are compared one by one, what becomes of the others says ``rest``; ``alpha`` weighs the labels'
    cross-entropy over the whole vocabulary, ``beta`` the divergence at ``temperature`` (times its square);
    ``max_ratio`` weighs it by cross-entropy over divergence besides (see ``mix``).

    Raises:
        ValueError: a setting out of range; when called, ``k`` above the vocabulary.
    """

    k: int = 64
    rest: Literal["bucket", "renormalise"] = "bucket"
    alpha: float = 0.5
    beta: float = 0.5
    temperature: float = 1.0
    max_ratio: float | None = None

    def __post_init__(self) -> None:
        check_mix("TopK", self.alpha, self.beta, self.temperature, self.max_ratio)
        if self.rest not in ("bucket", "renormalise"):
            raise ValueError(f"distillation.rest={self.rest}: allowed are bucket and renormalise")
        least = 1 if self.rest == "bucket" else 2  # one token alone has the probability 1
        if self.k < least:
            raise ValueError(f"distillation.k={self.k}: allowed is {least} or more with distillation.rest={self.rest}")

    @property
    def uses_teacher(self) -> bool:
        return self.beta > 0

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        if not self.beta:
            return self.alpha * hard_loss(student_logits, labels)
        assert teacher_logits is not None
        vocabulary = teacher_logits.shape[-1]
        if self.k > vocabulary:
            raise ValueError(f"distillation.k={self.k}: allowed are at most the {vocabulary} tokens of the vocabulary")
        tokens = teacher_logits.topk(self.k, -1).indices
        teacher, student = self._log_masses(teacher_logits, tokens), self._log_masses(student_logits, tokens)
        divergence = self.temperature**2 * torch.linalg.vecdot(teacher.exp(), teacher - student)
        return mixed_loss(
            student_logits, labels, divergence, alpha=self.alpha, beta=self.beta, max_ratio=self.max_ratio
        )

    def _log_masses(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """(..., vocabulary) -> log-probabilities of ``tokens`` (..., k), and of all others together behind them."""
        scaled = in_full_precision(logits) / self.temperature
        kept = scaled.gather(-1, tokens)
        if self.rest == "bucket" and self.k < logits.shape[-1]:
            others = scaled.scatter(-1, tokens, float("-inf")).logsumexp(-1, keepdim=True)
            kept = torch.cat([kept, others], -1)
        return torch.log_softmax(kept, -1)
