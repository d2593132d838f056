"""Saved importance scores: ``importance.safetensors``, one tensor per axis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

FILE_NAME = "importance.safetensors"


def write_scores(scores: Mapping[str, Tensor], folder: Path, *, method: str) -> None:
    """Writes ``folder/importance.safetensors`` whole or not at all; ``method`` names how the scores were made."""
    from safetensors.torch import save_file

    temporary = folder / f"{FILE_NAME}.tmp"
    save_file({key: value.contiguous() for key, value in scores.items()}, temporary, metadata={"method": method})
    temporary.replace(folder / FILE_NAME)


def read_scores(folder: Path) -> dict[str, Tensor]:
    """Raises ValueError where there are none."""
    from safetensors.torch import load_file

    if not (folder / FILE_NAME).is_file():
        raise ValueError(f"{folder} holds no {FILE_NAME}; run the train stage first")
    return load_file(folder / FILE_NAME)
