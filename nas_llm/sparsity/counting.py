"""How many weights are zero, per tensor and of the whole: counted, never estimated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas_llm.models.quantized_linear import quantized_modules


@dataclass(frozen=True)
class Zeros:
    """``zeros`` of ``size`` weights."""

    zeros: int
    size: int

    @classmethod
    def of(cls, tensor: Tensor) -> Zeros:
        return cls(tensor.numel() - int(torch.count_nonzero(tensor)), tensor.numel())

    @property
    def nonzero(self) -> int:
        return self.size - self.zeros

    @property
    def sparsity(self) -> float:
        """Fraction of zeros; 0 where there is no weight."""
        return self.zeros / self.size if self.size else 0.0

    def __add__(self, other: Zeros) -> Zeros:
        return Zeros(self.zeros + other.zeros, self.size + other.size)

    def to_dict(self) -> dict[str, Any]:
        return {"zeros": self.zeros, "size": self.size, "sparsity": self.sparsity}


SPARSE = 0.05  # of a weight's entries are exactly zero: from there on that is no accident
PATTERNS = ((2, 4), (4, 8))  # N of every M weights stay: those that are looked for


def pattern_of(weights: Iterable[Tensor]) -> str | None:
    """The pattern N:M that one of these weights has along its inputs, "2:4" or "4:8"; None where none has one.

    weights: (out, in) each.
    """
    for weight in weights:
        for kept, group in PATTERNS:
            if has_pattern(weight, kept, group):
                return f"{kept}:{group}"
    return None


def has_pattern(weight: Tensor, kept: int, group: int) -> bool:
    """Whether at most ``kept`` of every ``group`` neighbours along the inputs of ``weight`` (out, in) are not zero."""
    if weight.dim() != 2 or weight.shape[1] % group:
        return False
    return bool((weight.unflatten(1, (-1, group)).count_nonzero(-1) <= kept).all())


@dataclass(frozen=True)
class ZeroCounts:
    """Zeros by name, of modules or parameters; ``overall`` is their sum."""

    by_name: Mapping[str, Zeros]

    @property
    def overall(self) -> Zeros:
        return sum(self.by_name.values(), Zeros(0, 0))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        named = {name: zeros.to_dict() for name, zeros in self.by_name.items()}
        return {"overall": self.overall.to_dict(), "by_name": named}


def zeros_of_model(model: nn.Module) -> ZeroCounts:
    """Of every parameter by its name, tied ones once, and of the weights that are held as integers: ``overall.size`` is
    the number of parameters and ``overall.nonzero`` that of the non-zero ones. Of a super-network: the whole one,
    whatever is active."""
    counts = {name: Zeros.of(parameter.detach()) for name, parameter in model.named_parameters()}
    packed = {f"{name}.weight": Zeros.of(module.weight) for name, module in quantized_modules(model).items()}
    return ZeroCounts(counts | packed)
