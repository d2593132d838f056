"""Importance as an earlier run has scored it: ``importance=file importance.path=runs/NAME/importance.safetensors``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nas_llm.importance.recording import Batches
from nas_llm.importance.scores import read_scores_of
from nas_llm.models.supernet import Supernet


@dataclass(frozen=True)
class File:
    """The scores of a file, by whichever method they were made.

    Raises:
        ValueError: when called: there is no such file, or its scores are of another network.
    """

    path: str

    def __call__(self, supernet: Supernet, batches: Batches = ()) -> dict[str, Tensor]:
        """The scores as they lie in the file; ``batches`` are not looked at."""
        return read_scores_of(supernet, Path(self.path), setting=f"importance.path={self.path}")
