"""How many weights become zero, as a fraction or as a pattern, and which ones once each has a score.

A pattern N:M leaves N of every M neighbours along the input dimension, as hardware reads it (2:4: half; Mishra et al.,
"Accelerating Sparse Deep Neural Networks", 2021). Scores have the shape (rows, in); the lowest go, of equal ones the
counts still hold exactly. Weights that are zero already have the lowest score of every method here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from nas_llm.models.block_walk import Projection
from nas_llm.models.input_statistics import finite


@dataclass(frozen=True)
class Amount:
    """``fraction`` of the weights, or, where it is None, all but ``kept`` of every ``group``."""

    fraction: float | None
    kept: int = 0
    group: int = 1

    @classmethod
    def of(cls, sparsity: float | None, pattern: str | None) -> Amount:
        """From the settings of a method.

        Raises:
            ValueError: both or neither is given, ``sparsity`` is not in [0, 1), or ``pattern`` is none.
        """
        if sparsity is not None and pattern is not None:
            raise ValueError(
                f"sparsity.sparsity={sparsity} and sparsity.pattern={pattern}: allowed is one of them; set "
                "sparsity.pattern=null, or sparsity.sparsity=null"
            )
        if sparsity is not None:
            if not 0 <= sparsity < 1:
                raise ValueError(
                    f"sparsity.sparsity={sparsity}: allowed is the fraction of zeros, from 0 to below 1, as "
                    "sparsity.sparsity=0.5"
                )
            return cls(float(sparsity))
        if pattern is None:
            raise ValueError(
                "sparsity says neither how many weights become zero nor in which pattern: set sparsity.sparsity=0.5, "
                "or sparsity.pattern=2:4"
            )
        match = re.fullmatch(r"(\d+):(\d+)", pattern)
        if match is None or not 0 < int(match[1]) < int(match[2]):
            raise ValueError(
                f"sparsity.pattern={pattern}: allowed is N:M, of which N of every M weights stay, 0 < N < M, as "
                "sparsity.pattern=2:4"
            )
        return cls(None, int(match[1]), int(match[2]))

    def zeros(self, size: int) -> int:
        """How many of ``size`` weights go: never all of them, and never more than the fraction."""
        if self.fraction is None:
            return size // self.group * (self.group - self.kept)
        return int(self.fraction * size + 1e-6)  # 0.29 * 100 is 28.999...

    def refuse_width(self, projection: Projection) -> None:
        """Raises:
        ValueError: the pattern does not divide the projection's width.
        """
        width = projection.weight.shape[1]
        if width % self.group:
            raise ValueError(
                f"sparsity.pattern={self.kept}:{self.group} does not divide the width of {projection.name}, {width}: "
                f"choose M that divides it, leave the module out with sparsity.targets=, or set sparsity.pattern=null "
                "sparsity.sparsity=0.5"
            )

    def lowest(self, scores: Tensor) -> Tensor:
        """The mask, True for what goes: in every row, or in every group of every row, equally many.

        scores: (rows, in) -> (rows, in), bool.
        """
        if self.fraction is None:
            return lowest(scores.unflatten(1, (-1, self.group)), self.group - self.kept).flatten(1)
        return lowest(scores, self.zeros(scores.shape[1]))

    def lowest_of_all(self, scores: Tensor) -> Tensor:
        """As :meth:`lowest`, but a fraction is that of the whole matrix."""
        if self.fraction is None:
            return self.lowest(scores)
        return lowest(scores.flatten(), self.zeros(scores.numel())).view_as(scores)


def lowest(scores: Tensor, count: int) -> Tensor:
    """True for exactly ``count`` of the lowest along the last dimension."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(-1, scores.topk(count, dim=-1, largest=False, sorted=False).indices, True)


def zero(projection: Projection, mask: Tensor) -> None:
    """Zeroes the weights where ``mask`` (out, in) is True, in place."""
    projection.weight.masked_fill_(mask, 0)


def refuse_non_finite(scores: Tensor, name: str) -> None:
    """Raises:
    ValueError: a score is not finite; ``name`` is the module whose weights have it.
    """
    if not finite(scores):
        raise ValueError(
            f"weights of {name}, or what they are weighed by, are not finite, so that none of them is the least: set "
            "model.path to a network whose weights are whole"
        )
