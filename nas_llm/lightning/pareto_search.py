"""After training: save the super-network in the run directory and search it for its Pareto front, on all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from transformers import PreTrainedTokenizerBase

from nas_llm.lightning.module import SupernetModule
from nas_llm.lightning.supernet_search import SupernetSearch
from nas_llm.peft.lora import Lora
from nas_llm.peft.saving import save_supernet
from nas_llm.search import Front, SearchOutcome
from nas_llm.search.archive import Evaluation

SUPERNET = "supernet"
EXPORTED_FRACTIONS = (0.75, 0.5, 0.25)
_ABOUT = 0.05


class ParetoSearch(Callback):
    """Runs when fitting has ended, also where a resumed run had nothing left to train; the hypervolume goes to the
    trainer's loggers.

    Args:
        run_dir: ``supernet/`` and what the search writes go there.
        tokenizer: saved with the super-network.
        search: None only saves.
        peft: what put the adapters into the super-network; None where it has none.
    """

    def __init__(
        self,
        run_dir: Path,
        tokenizer: PreTrainedTokenizerBase,
        search: SupernetSearch | None,
        peft: Lora | None = None,
    ) -> None:
        self.run_dir, self.tokenizer, self.search, self.peft = run_dir, tokenizer, search, peft
        self.outcome: SearchOutcome | None = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SupernetModule)
        # Lightning has moved the model off its device by now.
        supernet = pl_module.supernet.to(trainer.strategy.root_device).eval()
        if trainer.is_global_zero:
            save_supernet(supernet, self.run_dir / SUPERNET, tokenizer=self.tokenizer, peft=self.peft)
        trainer.strategy.barrier()
        if self.search is not None:
            self.outcome = self.search(supernet, trainer.global_step, partial(_log, trainer))
            for logger in trainer.loggers:
                logger.save()


def _log(trainer: Trainer, metrics: Mapping[str, float], evaluations: int) -> None:
    """To the run's loggers; the step of these metrics is the number of evaluations."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=evaluations)


def to_export(front: Front, fractions: tuple[float, ...] = EXPORTED_FRACTIONS) -> list[Evaluation]:
    """The best of the front at about these fractions of the full network's parameters, the largest first.

    About is up to 5 percentage points; where the front has nothing there, the nearest in size stands in, and none is
    named twice.
    """
    assert front.full is not None
    full = front.full
    size = {
        evaluation.id: evaluation.objectives["params"] / full.objectives["params"] for evaluation in front.evaluations
    }
    left = [evaluation for evaluation in front.evaluations if evaluation.id != full.id]
    chosen: list[Evaluation] = []
    for fraction in fractions:
        if not left:
            break
        near = [evaluation for evaluation in left if abs(size[evaluation.id] - fraction) <= _ABOUT]
        nearest = min(left, key=lambda evaluation: abs(size[evaluation.id] - fraction))
        best = Front(tuple(near), front.directions, full).pick() if near else nearest
        chosen.append(best)
        left.remove(best)
    return sorted(chosen, key=lambda evaluation: -size[evaluation.id])
