"""Trains the tiny super-network and writes its weights: called by test_ddp.py, run by it and by Lightning as ranks."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback
from training_fixtures import eval_loader, tiny_module, train_loader, trainer, weights

from nas_llm.distillation import HiddenMatching

torch.set_num_threads(1)


class Drawn(Callback):
    """Every rank writes the architectures of its steps and its gradients' state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer, pl_module) -> None:
        ids = [architecture.id for step in range(trainer.global_step) for architecture in pl_module.architectures(step)]
        (self.folder / f"rank-{trainer.global_rank}.txt").write_text("\n".join(ids))


FROZEN = {"teacher": "frozen", "teacher_logits": "recomputed", "hidden_matching": HiddenMatching(100.0)}


def main(folder: Path, devices: int, accumulate: int, mode: str) -> None:
    teaching = FROZEN if mode == "frozen" else {}
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    module = tiny_module(optimizer=optimizer, accumulate_grad_batches=accumulate, **teaching)
    strategy = "ddp" if devices > 1 else "auto"
    fitted = trainer(folder, max_steps=4, max_epochs=-1, devices=devices, strategy=strategy, callbacks=[Drawn(folder)])
    rank = int(os.environ.get("LOCAL_RANK", "0"))  # Lightning sets it for the processes that it starts
    if mode == "poison" and rank == 1:
        module.training_step = poisoned(module)
    fitted.fit(module, train_loader(8, rank=rank, world_size=devices), eval_loader(4))
    if rank == 0:
        torch.save(weights(module), folder / "weights.pt")
        torch.save({name: float(value) for name, value in fitted.callback_metrics.items()}, folder / "metrics.pt")


def poisoned(module):
    step = module.training_step

    def with_infinity(batch, batch_idx):
        if module.global_step == 2:
            module.supernet.model.lm_head.weight.data[7] = float("nan")
        step(batch, batch_idx)

    return with_infinity


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
