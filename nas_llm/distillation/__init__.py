"""Losses of a student that imitates a teacher; they see tensors only.

A distillation is a frozen dataclass, called with logits and the labels of the same positions (already shifted:
``labels[i]`` is the token that ``logits[i]`` predicts); it returns the sum over counted tokens, so that batches of any
size add up. ``HiddenMatching`` compares block outputs instead, and is added to one of them.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from nas_llm.distillation.cosine import Cosine
from nas_llm.distillation.cross_entropy import CrossEntropy
from nas_llm.distillation.forward_kl import ForwardKL
from nas_llm.distillation.hidden_matching import HiddenMatching
from nas_llm.distillation.jensen_shannon import JensenShannon
from nas_llm.distillation.labels import Labels
from nas_llm.distillation.mse import MSE
from nas_llm.distillation.reverse_kl import ReverseKL
from nas_llm.distillation.symmetric_kl import SymmetricKL
from nas_llm.distillation.top_k import TopK


class Distillation(Protocol):
    """How a sub-network learns from labels and from the teacher."""

    @property
    def uses_teacher(self) -> bool: ...

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        """Sum of the losses of the counted tokens.

        Args:
            student_logits: (..., vocabulary), any floating type.
            teacher_logits: the same shape, detached; may be None where ``uses_teacher`` is False.
            labels: (...), next tokens; -100 is not counted.

        Returns:
            A float32 (float64 for float64 logits) scalar.
        """
        ...


__all__ = [
    "MSE",
    "Cosine",
    "CrossEntropy",
    "Distillation",
    "ForwardKL",
    "HiddenMatching",
    "JensenShannon",
    "Labels",
    "ReverseKL",
    "SymmetricKL",
    "TopK",
]
