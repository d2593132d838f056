"""Sparsity: which weights of a super-network become zero, one method a file; the protocol is here.

A method is a frozen dataclass whose fields are its YAML. All have three in common: exactly one of ``sparsity`` (the
fraction of weights that become zero) and ``pattern`` ("2:4": 2 of every 4 neighbours along the input dimension stay),
and ``targets`` (names of linear modules, or the ends of names; None: all of the transformer blocks). Embeddings and the
output head stay dense.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from nas_llm.sparsity.counting import SPARSE, ZeroCounts, Zeros, zeros_of_model

if TYPE_CHECKING:
    from nas_llm.models.supernet import Supernet

__all__ = ["SPARSE", "Batches", "Sparsity", "ZeroCounts", "Zeros", "zeros_of_model"]

Batches = Iterable[Mapping[str, Tensor]]


class Sparsity(Protocol):
    """Zeroes weights of the whole network in place."""

    @property
    def sparsity(self) -> float | None: ...

    @property
    def pattern(self) -> str | None: ...

    @property
    def targets(self) -> Sequence[str] | None: ...

    def __call__(self, supernet: Supernet, batches: Batches) -> ZeroCounts:
        """The zeros of each target's weight, by the name of its module.

        Raises:
            ValueError: targets that match nothing, a pattern that does not divide a width, no batch where the method
                looks at data, statistics or weights that are not finite.
        """
