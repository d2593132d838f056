"""Checkpoints that are whole or not there: written to a temporary name and renamed, read without running code.

``checkpoints/last.ckpt`` of the run directory is the newest; it is written between optimizer steps, where no gradient
is half summed.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from nas_llm.atomic_files import atomic_path

LAST = "last.ckpt"
KEYS = {"pytorch-lightning_version", "state_dict", "global_step"}  # which every checkpoint of Lightning's has


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, streamed to a temporary name and renamed; plain content only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Raises ValueError where the disk is full or refuses the write; the file before it stays."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch's own, after what the file said
                raise error from error.__context__

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Raises ValueError for a file that is not a whole checkpoint, or holds more than plain content."""
        return read_checkpoint(path)


class SaveCheckpoints(Callback):
    """Writes ``last.ckpt`` every ``every_n_steps`` optimizer steps and at the end; ``keep`` leaves every one as
    ``step-N.ckpt``.

    Raises:
        ValueError: ``every_n_steps`` below 1.
    """

    def __init__(self, folder: str | Path, every_n_steps: int = 100, keep: bool = False) -> None:
        if every_n_steps < 1:
            raise ValueError(f"checkpoint.every_n_steps={every_n_steps}: allowed is 1 or more optimizer steps")
        self.folder, self.every_n_steps, self.keep = Path(folder), every_n_steps, keep
        self._saved = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step != self._saved and trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._saved:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._saved = trainer.global_step
        if self.keep:
            trainer.save_checkpoint(self.folder / f"step-{trainer.global_step}.ckpt")
        trainer.save_checkpoint(self.folder / LAST)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU.

    Raises:
        ValueError: the file is missing, truncated, no checkpoint of a training, or holds more than plain content.
    """
    if not Path(path).is_file():
        raise ValueError(f"ckpt_path={path}: there is no such file; leave ckpt_path out to start anew")
    broken = ValueError(
        f"ckpt_path={path} is not a whole checkpoint (truncated, or not written by this program): "
        "resume from another one, or leave ckpt_path out to start anew"
    )
    if not zipfile.is_zipfile(path):  # the list of contents is at the end
        raise broken
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # damaged content fails in any way
        raise broken from error
    if not isinstance(content, dict) or not content.keys() >= KEYS:
        raise broken
    return content
