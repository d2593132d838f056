"""The progress bar of training: optimizer steps done, losses by network, learning rate, and a bar for validation."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

_SHOWN = {
    "train/loss_largest": "largest",
    "train/loss_sampled": "sampled",
    "train/loss_smallest": "smallest",
    "val/loss_largest": "val",
}


class TrainingProgress(ProgressBar):
    """One bar over all optimizer steps, whatever the number of epochs and micro-batches; rank 0 shows it."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm | None = None
        self._validation: tqdm | None = None

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = trainer.max_steps if trainer.max_steps >= 0 else None
        self._bar = tqdm(
            desc="train",
            total=total,
            initial=trainer.global_step,
            unit="step",
            disable=not self._shows(trainer),
            dynamic_ncols=True,
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        assert self._bar is not None
        if trainer.global_step == self._bar.n:
            return
        metrics = trainer.callback_metrics
        losses = {name: f"{float(metrics[key]):.3f}" for key, name in _SHOWN.items() if key in metrics}
        self._bar.set_postfix(losses, refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = trainer.num_val_batches[0] if isinstance(trainer.num_val_batches, list) else trainer.num_val_batches
        self._validation = tqdm(
            desc="validate",
            total=total,
            unit="batch",
            leave=False,
            disable=not self._shows(trainer),
            dynamic_ncols=True,
        )

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        assert self._validation is not None
        self._validation.update()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._validation is not None
        self._validation.close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._bar is not None
        self._bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        for bar in (self._validation, self._bar):
            if bar is not None:
                bar.close()

    def _shows(self, trainer: Trainer) -> bool:
        return self._enabled and trainer.is_global_zero
