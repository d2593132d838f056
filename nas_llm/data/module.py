"""What every data module shares: four disjoint splits of tokenised records, turned into loaders."""

import hashlib
import logging
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule

from nas_llm.data.loader import Collate, EvalLoader, TrainLoader
from nas_llm.data.questions import Question
from nas_llm.data.records import TokenRecords

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

SPLITS = ("train", "calibration", "validation", "test")


class SplitDataModule(LightningDataModule):
    """Loaders over the splits that `build` returns: `train`, `calibration`, `validation`, `test`.

    A subclass implements `build() -> {split: TokenRecords}`, called once by `setup` on every rank, and does what one
    process alone is to do (downloading, caching) in `prepare_data`. `batch_size` is the global batch's, in records.

    Raises ValueError for batch_size < 1, num_workers < 0, a negative seed, or a tokenizer without an end of sequence.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", *, batch_size: int, seed: int = 0, num_workers: int = 0
    ) -> None:
        super().__init__()
        _at_least("data.batch_size", batch_size, 1)
        _at_least("data.num_workers", num_workers, 0)
        _at_least("data.seed", seed, 0)
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer has no end-of-sequence token, which separates documents and ends answers; "
                "set eos_token in the tokenizer_config.json beside the model"
            )
        self.tokenizer = tokenizer
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self._datasets: Mapping[str, TokenRecords] | None = None

    def build(self) -> Mapping[str, TokenRecords]:
        """The four splits; sizes may be 0."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        if self._datasets is not None:
            return
        self._datasets = self.build()
        log.info("data: %s", ", ".join(f"{name} {len(self._datasets[name])} records" for name in SPLITS))

    def dataset(self, split: str) -> TokenRecords:
        """One split: sized and indexable, of records `{"input_ids", "labels"}`."""
        refuse_unknown_split(split)
        if self._datasets is None:
            raise RuntimeError("call prepare_data() and setup() first")
        return self._datasets[split]

    def questions(self, split: str) -> list[Question]:
        """The records of one split as questions that a network can be asked, with their answers.

        Raises ValueError where the data are no questions, or a record has no answer.
        """
        raise ValueError(
            f"{type(self).__name__} holds no questions with answers, which objectives=[generated_accuracy] asks: "
            "choose data=microworld, data=instruction, data=commonsense or data=math, or name files with questions "
            "(objectives.generated_accuracy.validation_path=, objectives.generated_accuracy.test_path=)"
        )

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of a hash of the tokenised content of the four splits."""
        digest = hashlib.sha256()
        for name in SPLITS:
            digest.update(name.encode())
            self.dataset(name).update_hash(digest)
        return digest.hexdigest()[:16]

    def train_dataloader(self) -> TrainLoader:
        """The resumable loader of this rank. Raises ValueError as `TrainLoader` does."""
        start, rank, world_size = 0, 0, 1
        if self.trainer is not None:
            _refuse_settings_that_break_the_order(self.trainer)
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            # Lightning hands a loader its state back only when it resumes inside an epoch.
            start = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        return TrainLoader(
            self._filled("train"),
            self._collate(),
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            num_workers=self.num_workers,
            pin_memory=self._pin_memory(),
            fingerprint=self.fingerprint,
            start=start,
        )

    def val_dataloader(self) -> EvalLoader:
        return self._eval_loader("validation")

    def test_dataloader(self) -> EvalLoader:
        return self._eval_loader("test")

    def calibration_dataloader(self) -> EvalLoader:
        """Raises ValueError where the calibration split holds less than one batch."""
        held = len(self._filled("calibration"))
        if held < self.batch_size:
            raise ValueError(
                f"data.calibration_size: the calibration split holds {held} records, less than one batch of "
                f"data.batch_size={self.batch_size}; set data.calibration_size={self.batch_size} or more, or "
                f"data.batch_size={held} or less"
            )
        return self._eval_loader("calibration")

    def _eval_loader(self, split: str) -> EvalLoader:
        return EvalLoader(
            self._filled(split),
            self._collate(),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=self._pin_memory(),
        )

    def _filled(self, split: str) -> TokenRecords:
        records = self.dataset(split)
        if not len(records):
            raise ValueError(f"the {split} split is empty; set data.{split}_size above 0")
        return records

    def _collate(self) -> Collate:
        pad = self.tokenizer.pad_token_id
        return Collate(self.tokenizer.eos_token_id if pad is None else pad)

    def _pin_memory(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def refuse_unknown_split(split: str) -> None:
    """Raises ValueError for any other name than SPLITS."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")


def _at_least(key: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise ValueError(f"{key}={value} must be at least {minimum}; set {key}={minimum} or more")


def _refuse_settings_that_break_the_order(trainer: Any) -> None:
    if trainer.overfit_batches:
        raise ValueError(
            f"trainer.overfit_batches={trainer.overfit_batches} has no effect on the order of the batches; "
            "set trainer.overfit_batches=0 and data.max_records to the number of records to learn by heart"
        )
    if trainer.reload_dataloaders_every_n_epochs:
        raise ValueError(
            f"trainer.reload_dataloaders_every_n_epochs={trainer.reload_dataloaders_every_n_epochs} would repeat one "
            "order; set trainer.reload_dataloaders_every_n_epochs=0"
        )
