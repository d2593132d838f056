"""The loaders: padding, order, ranks, and resuming under a real Lightning Trainer."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from nas_llm.data.loader import Collate, EvalLoader, TrainLoader
from nas_llm.data.module import SplitDataModule
from nas_llm.data.records import TokenRecords

RECORDS = TokenRecords.from_lists([[10 + i, *range(i % 4 + 1)] for i in range(23)], [i % 2 for i in range(23)])


def train_loader(**settings) -> TrainLoader:
    return TrainLoader(RECORDS, Collate(pad_token_id=0), **{"batch_size": 4, "seed": 3, **settings})


def firsts(batch) -> list[int]:
    """The record numbers of a batch: RECORDS puts 10 + number first."""
    return (batch["input_ids"][:, 0] - 10).tolist()


def test_a_batch_is_padded_on_the_right_to_its_longest_record():
    batch = Collate(pad_token_id=7)([RECORDS[0], RECORDS[3]])
    assert batch["input_ids"].tolist() == [[10, 0, 7, 7, 7], [13, 0, 1, 2, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[10, 0, -100, -100, -100], [-100, 0, 1, 2, 3]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_an_epoch_holds_each_record_once_but_for_the_incomplete_batch():
    loader = train_loader()
    epochs = [[number for batch in loader for number in firsts(batch)] for _ in range(2)]
    assert all(len(set(epoch)) == len(epoch) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert epochs == [[number for batch in again for number in firsts(batch)] for again in [train_loader()] * 2]
    assert epochs[0] != [number for batch in train_loader(seed=4) for number in firsts(batch)]


def test_the_ranks_share_the_global_batch():
    for whole, *parts in zip(train_loader(), *(train_loader(rank=r, world_size=2) for r in range(2)), strict=True):
        assert [firsts(part) for part in parts] == [firsts(whole)[0::2], firsts(whole)[1::2]]


@pytest.mark.parametrize("consumed", [0, 3, 5, 7])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_loaded_state_goes_on_where_the_other_stopped(consumed, world_size):
    def stream(loader, count):
        return [firsts(batch) for _ in range(4) for batch in loader][:count]

    uninterrupted = stream(train_loader(), 14)
    stopped = train_loader(rank=1, world_size=world_size) if world_size > 1 else train_loader()
    iterator = iter(stopped)
    for _ in range(consumed):
        try:
            next(iterator)
        except StopIteration:
            iterator = iter(stopped)
            next(iterator)
    resumed = train_loader()
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert stream(resumed, 14 - consumed) == uninterrupted[consumed:]


def test_workers_prefetch_without_moving_the_state():
    loader = train_loader(num_workers=1)
    iterator = iter(loader)
    assert [firsts(next(iterator)) for _ in range(2)] == [
        firsts(b) for _, b in zip(range(2), train_loader(), strict=False)
    ]
    assert loader.state_dict()["step"] == 2


def test_loading_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    list(train_loader())
    list(EvalLoader(RECORDS, Collate(0), batch_size=4))
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_keeps_every_record_in_order():
    loader = EvalLoader(RECORDS, Collate(0), batch_size=4)
    assert [number for batch in loader for number in firsts(batch)] == list(range(23))
    assert len(loader) == len(list(loader)) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 6, "world_size": 4}, "data.batch_size=6 .* 4 processes; set data.batch_size=8"),
        ({"batch_size": 24}, "data.batch_size=24 exceeds the 23 training records"),
    ],
)
def test_impossible_batch_sizes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        train_loader(**settings)


@pytest.mark.parametrize("change", [{"seed": 4}, {"batch_size": 5}, {"fingerprint": "other"}])
def test_a_state_of_other_data_is_refused(change):
    with pytest.raises(
        ValueError, match=f"cannot resume: the data differ from the checkpoint's in {next(iter(change))}"
    ):
        train_loader(**change).load_state_dict(train_loader().state_dict())


class Numbers(SplitDataModule):
    """RECORDS for training, the first three of them for validation."""

    def build(self):
        few = RECORDS.take(range(3))
        return {"train": RECORDS, "validation": few, "calibration": RECORDS.take([]), "test": few}


class Recorder(L.LightningModule):
    """Notes the records of each training batch; its weights depend on their order."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(firsts(batch))
        return (self.weight - batch["input_ids"][:, 0].float().mean()) ** 2

    def validation_step(self, batch, batch_idx):
        self.log("records", float(len(batch["input_ids"])), reduce_fx="sum")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tokenizer, folder, ckpt_path=None, **settings) -> tuple[Recorder, L.Trainer]:
    module = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, datamodule=Numbers(tokenizer, batch_size=4, seed=3), ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module, trainer


@pytest.fixture
def quiet(caplog):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.mark.parametrize("stop", [3, 5, 6, 10, 12])
@pytest.mark.parametrize("limits", [{}, {"limit_train_batches": 3}, {"val_check_interval": 2}])
def test_resumed_training_sees_the_batches_of_uninterrupted_training(tiny_tokenizer, tmp_path, quiet, stop, limits):
    whole, _ = fit(tiny_tokenizer, tmp_path, max_steps=13, **limits)
    first, _ = fit(tiny_tokenizer, tmp_path, max_steps=stop, **limits)
    second, _ = fit(tiny_tokenizer, tmp_path, max_steps=13, ckpt_path=tmp_path / "last.ckpt", **limits)
    assert first.seen + second.seen == whole.seen
    assert len(whole.seen) == 13
    assert torch.equal(second.weight, whole.weight)


def test_training_resumed_at_the_end_of_an_epoch_goes_on_to_the_next(tiny_tokenizer, tmp_path, quiet):
    whole, _ = fit(tiny_tokenizer, tmp_path, max_epochs=3)
    first, _ = fit(tiny_tokenizer, tmp_path, max_epochs=2)
    second, _ = fit(tiny_tokenizer, tmp_path, max_epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert first.seen + second.seen == whole.seen
    assert len(whole.seen) == 15


class StopInside(L.Callback):
    """Saves a checkpoint from the hook that users' checkpoints come from, and stops."""

    def __init__(self, path, step) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


@pytest.mark.parametrize("step", [4, 5, 7])
def test_a_checkpoint_of_a_running_epoch_resumes_exactly(tiny_tokenizer, tmp_path, quiet, step):
    whole, _ = fit(tiny_tokenizer, tmp_path, max_epochs=3)
    first, _ = fit(tiny_tokenizer, tmp_path, max_epochs=3, callbacks=[StopInside(tmp_path / "inside.ckpt", step)])
    second, _ = fit(tiny_tokenizer, tmp_path, max_epochs=3, ckpt_path=tmp_path / "inside.ckpt")
    assert first.seen + second.seen == whole.seen


def test_validation_in_lightning_counts_each_record_once(tiny_tokenizer, tmp_path, quiet):
    _, trainer = fit(tiny_tokenizer, tmp_path, max_steps=5)
    assert trainer.callback_metrics["records"] == 3


def test_two_processes_see_the_global_batches_of_one(tiny_tokenizer, tmp_path, quiet):
    """Lightning's own sampler is on by default and must not get in."""
    alone, _ = fit(tiny_tokenizer, tmp_path, max_steps=7)
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0]["seen"] == [batch[0::2] for batch in alone.seen]
    assert ranks[1]["seen"] == [batch[1::2] for batch in alone.seen]
    assert [rank["validation"] for rank in ranks] == [3, 3]


TWO_PROCESSES = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
import lightning as L
from test_data_loader import Numbers, Recorder

class Writer(L.Callback):
    def on_train_end(self, trainer, module):
        validation = sum(len(batch["input_ids"]) for batch in trainer.datamodule.val_dataloader())
        record = json.dumps({"seen": module.seen, "validation": validation})
        Path(sys.argv[1], f"rank{trainer.global_rank}.json").write_text(record)

trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", logger=False, enable_checkpointing=False,
                    enable_progress_bar=False, enable_model_summary=False, max_steps=7, callbacks=[Writer()])
trainer.fit(Recorder(), datamodule=Numbers(SimpleNamespace(eos_token_id=1, pad_token_id=0), batch_size=4, seed=3))
"""


@pytest.mark.parametrize("setting", ["overfit_batches", "reload_dataloaders_every_n_epochs"])
def test_settings_that_would_change_the_order_are_refused(tiny_tokenizer, tmp_path, quiet, setting):
    with pytest.raises(ValueError, match=f"trainer.{setting}=1 .*set trainer.{setting}=0"):
        fit(tiny_tokenizer, tmp_path, max_steps=2, **{setting: 1})


def test_an_empty_split_names_its_setting(tiny_tokenizer):
    data = Numbers(tiny_tokenizer, batch_size=4)
    data.setup()
    assert len(data.dataset("calibration")) == 0
    with pytest.raises(ValueError, match="the calibration split is empty; set data.calibration_size above 0"):
        data.calibration_dataloader()
    with pytest.raises(ValueError, match="unknown split 'dev'; there are train, calibration, validation, test"):
        data.dataset("dev")


@pytest.mark.parametrize(("setting", "value"), [("batch_size", 0), ("seed", -1), ("num_workers", -2)])
def test_impossible_settings_are_refused(tiny_tokenizer, setting, value):
    with pytest.raises(ValueError, match=f"data.{setting}={value} must be at least"):
        Numbers(tiny_tokenizer, **{"batch_size": 4, setting: value})
